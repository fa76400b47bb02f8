"""Published data sets, read by torchvision's own classes: the paper's, CIFAR-10 and ImageNet."""

from sta_lightning.tasks.published.suite import PUBLISHED_TASKS

__all__ = ["PUBLISHED_TASKS"]
