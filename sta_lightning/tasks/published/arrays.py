"""Published sets that keep their images in a few large files, each through torchvision's own class.

``root`` is one folder for all sets; docs/data.md has their sizes and what was chosen.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision import datasets

from sta_lightning.tasks.task import Split


def _by_train(
    dataset: Callable[..., Dataset[Any]], part: Split, root: Path, download: bool, **options: Any
) -> Dataset[Any]:
    return dataset(str(root), train=part == "train", download=download, **options)


def by_split(
    dataset: Callable[..., Dataset[Any]],
    split: Split,
    root: Path,
    download: bool,
    *,
    folder: str = "",
    **options: Any,
) -> Dataset[Any]:
    """Open a class of torchvision's that names its splits as published, from ``root/folder``."""
    part = "val" if split == "validation" else split
    return dataset(str(root / folder), split=part, download=download, **options)


mnist = partial(_by_train, datasets.MNIST)
fashion_mnist = partial(_by_train, datasets.FashionMNIST)
kmnist = partial(_by_train, datasets.KMNIST)
# The suite of twenty tasks uses the digits, not the letters that other work does; the images are as
# the files have them, rows and columns exchanged, as in the literature.
emnist = partial(_by_train, datasets.EMNIST, split="digits")
cifar10 = partial(_by_train, datasets.CIFAR10)
cifar100 = partial(_by_train, datasets.CIFAR100)
svhn = partial(by_split, datasets.SVHN, folder="svhn")
# torchvision compares the checksums of all its files whenever it opens one.
stl10 = partial(by_split, datasets.STL10)


def fer2013(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """FER2013; both test parts of the competition are the test split, as in the literature."""
    data: Dataset[Any] = datasets.FER2013(str(root), split=split)
    return data


def pcam(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """PatchCamelyon as published."""
    data = by_split(_PCAM, split, root, download)
    data[0]  # opens the file: a damaged one is an error now
    return data


class _PCAM(datasets.PCAM):
    """torchvision's class keeps a module, which cannot be sent to loading processes."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "h5py"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.h5py = importlib.import_module("h5py")
