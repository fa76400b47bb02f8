"""Published data sets, read by torchvision: the literature's suites, and ImageNet."""

from sta_lightning.tasks.published.suite import PUBLISHED_TASKS
from sta_lightning.tasks.published.suites import EPOCHS, SUITES

__all__ = ["PUBLISHED_TASKS", "SUITES", "EPOCHS"]
