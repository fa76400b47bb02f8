"""Published sets that keep their images in a few large files, each through torchvision's own class.

``root`` is one folder for all sets.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, cast

from torch.utils.data import Dataset
from torchvision import datasets

from sta_lightning.tasks.task import Split


def mnist(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """MNIST, 60 000 and 10 000 images, from ``MNIST/raw``."""
    return cast(Dataset[Any], datasets.MNIST(str(root), train=split == "train", download=download))


def fashion_mnist(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """Fashion-MNIST, 60 000 and 10 000 images, from ``FashionMNIST/raw``."""
    return cast(Dataset[Any], datasets.FashionMNIST(str(root), train=split == "train", download=download))


def kmnist(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """Kuzushiji-MNIST, ten hiragana in old hands, 60 000 and 10 000 images, from ``KMNIST/raw``."""
    return cast(Dataset[Any], datasets.KMNIST(str(root), train=split == "train", download=download))


def emnist(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """EMNIST's part ``digits``, 240 000 and 40 000 images, from ``EMNIST/raw``.

    The suite of twenty tasks uses the digits, and not the letters that other work does. The images
    are as the files have them, rows and columns exchanged; so are they in the literature.
    """
    train = split == "train"
    return cast(Dataset[Any], datasets.EMNIST(str(root), split="digits", train=train, download=download))


def svhn(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """SVHN's cropped digits, 73 257 and 26 032 images, from ``svhn``; without ``extra``."""
    return cast(Dataset[Any], datasets.SVHN(str(root / "svhn"), split=split, download=download))


def cifar10(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """CIFAR-10, 50 000 and 10 000 images, from ``cifar-10-batches-py``."""
    return cast(Dataset[Any], datasets.CIFAR10(str(root), train=split == "train", download=download))


def cifar100(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """CIFAR-100 with its fine labels, 50 000 and 10 000 images, from ``cifar-100-python``."""
    return cast(Dataset[Any], datasets.CIFAR100(str(root), train=split == "train", download=download))


def stl10(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """STL-10's labelled images, 5 000 and 8 000, from ``stl10_binary``; without folds.

    torchvision compares the checksums of all its files, that of the 2.7 GB of unlabelled images
    too, whenever it opens one.
    """
    return cast(Dataset[Any], datasets.STL10(str(root), split=split, download=download))


def fer2013(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """FER2013, 28 709 and 7 178 faces, from ``fer2013``.

    Both test parts of the competition, ``PublicTest`` and ``PrivateTest``, are the test split, as
    in the literature. The competition's ``train.csv`` and ``test.csv`` do not do: that ``test.csv``
    has no labels.
    """
    return cast(Dataset[Any], datasets.FER2013(str(root), split=split))


def pcam(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """PatchCamelyon as published, 262 144, 32 768 and 32 768 images, from ``pcam``."""
    data = _PCAM(str(root), split="val" if split == "validation" else split, download=download)
    len(data)  # opens the file: a damaged one is an error now
    return cast(Dataset[Any], data)


class _PCAM(datasets.PCAM):
    """torchvision's class keeps a module, which cannot be sent to loading processes."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "h5py"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.h5py = importlib.import_module("h5py")
