"""Which published sets the literature merges together, and for how many epochs each is trained."""

from __future__ import annotations

from collections.abc import Mapping

_EIGHT = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")
_FOURTEEN = (*_EIGHT, "stl10", "oxford_pets", "flowers102", "cifar100", "pcam", "fer2013")
_TWENTY = (*_FOURTEEN, "cifar10", "food101", "fashion_mnist", "rendered_sst2", "emnist", "kmnist")

SUITES: Mapping[str, tuple[str, ...]] = {
    "paper6": ("mnist", "svhn", "gtsrb", "dtd", "eurosat", "cars"),
    "eight": _EIGHT,
    "fourteen": _FOURTEEN,
    "twenty": _TWENTY,
}
"""Names of tasks by suite.

``paper6`` are the sets of "Beyond Task Vectors" (arXiv:2411.16139); ``eight`` those of "Editing
Models with Task Arithmetic" (arXiv:2212.04089); ``fourteen`` and ``twenty`` those of "Localizing
Task Information for Improved Model Merging and Compression" (arXiv:2405.07813).
"""

EPOCHS: Mapping[str, int] = {
    # Given by the paper.
    "mnist": 5,
    "cars": 35,
    "dtd": 77,
    "eurosat": 12,
    "gtsrb": 11,
    "svhn": 4,
    # By arXiv:2212.04089 and arXiv:2405.07813: about 2 000 steps of 128 images, and at least one
    # epoch.
    "sun397": 14,
    "resisc45": 15,
    "cifar10": 6,
    "cifar100": 6,
    "stl10": 60,
    "food101": 4,
    "flowers102": 147,
    "oxford_pets": 82,
    "pcam": 1,
    "fer2013": 10,
    "emnist": 2,
    "fashion_mnist": 5,
    "kmnist": 5,
    "rendered_sst2": 39,
}
"""Epochs of fine-tuning by task; ImageNet is a control, and not trained on."""
