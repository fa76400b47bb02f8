"""Each published set through torchvision's own class; ``root`` is one folder for all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import datasets

from sta_lightning.tasks.published.cars import CAR_NAMES
from sta_lightning.tasks.published.names import DTD_FOLDERS, EUROSAT_FOLDERS, GTSRB_NAMES
from sta_lightning.tasks.published.place import check_classes
from sta_lightning.tasks.split import SPLIT_SEED
from sta_lightning.tasks.task import Split

_EUROSAT_TEST_SHARE = 0.1


def mnist(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """MNIST, 60 000 and 10 000 images, from ``MNIST/raw``."""
    return cast(Dataset[Any], datasets.MNIST(str(root), train=split == "train", download=download))


def svhn(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """SVHN's cropped digits, 73 257 and 26 032 images, from ``svhn``; the set ``extra`` is not used."""
    return cast(Dataset[Any], datasets.SVHN(str(root / "svhn"), split=split, download=download))


def gtsrb(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """GTSRB, 26 640 and 12 630 images as torchvision fetches them, from ``gtsrb``."""
    data = datasets.GTSRB(str(root), split=split, download=download)
    if split == "train":
        folder = root / "gtsrb" / "GTSRB" / "Training"
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        check_classes("gtsrb", found, tuple(f"{label:05d}" for label in range(len(GTSRB_NAMES))), folder)
    return cast(Dataset[Any], data)


def dtd(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """DTD, partition 1: its training and validation lists together (3 760 images), and its test list (1 880).

    The paper's 77 epochs make the usual 2 000 steps of 128 only if both lists are trained on; the validation
    split of the common rule is drawn from both.
    """
    parts = [datasets.DTD(str(root), split=name, download=download) for name in _dtd_lists(split)]
    for part in parts:
        check_classes("dtd", part.classes, DTD_FOLDERS, root / "dtd" / "dtd" / "images")
    return cast(Dataset[Any], ConcatDataset(parts) if len(parts) > 1 else parts[0])


def _dtd_lists(split: Split) -> tuple[str, ...]:
    return ("train", "val") if split == "train" else ("test",)


def eurosat(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """EuroSAT (RGB), 27 000 images from ``eurosat/2750``, in a split of ours.

    There is no official one. Ours: of each class's images in the sorted order of their file names, a tenth
    (rounded down, at least one) is for testing, drawn by ``torch.randperm`` with a generator seeded 0, class
    after class in alphabetical order. That leaves 2 700 test images; the other 24 300 are divided by the
    common rule into 21 870 for training and 2 430 for validation.
    """
    whole = datasets.EuroSAT(str(root), download=download)
    check_classes("eurosat", whole.classes, EUROSAT_FOLDERS, root / "eurosat" / "2750")
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    labels = torch.tensor(whole.targets)
    tested = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(len(EUROSAT_FOLDERS)):
        own = (labels == label).nonzero().flatten()
        chosen = torch.randperm(len(own), generator=generator)[: max(1, int(len(own) * _EUROSAT_TEST_SHARE))]
        tested[own[chosen]] = True
    return Subset(whole, (tested if split == "test" else ~tested).nonzero().flatten().tolist())


def cars(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """Stanford Cars, 8 144 and 8 041 images of 196 models, from ``stanford_cars``."""
    data = datasets.StanfordCars(str(root), split=split, download=download)
    names = tuple(_letters(name) for name in CAR_NAMES)
    check_classes("cars", [_letters(name) for name in data.classes], names, root / "stanford_cars" / "devkit")
    return cast(Dataset[Any], data)


def _letters(name: str) -> str:
    return re.sub(r"\W+", " ", name.lower()).strip()


def cifar10(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """CIFAR-10, 50 000 and 10 000 images, from ``cifar-10-batches-py``."""
    return cast(Dataset[Any], datasets.CIFAR10(str(root), train=split == "train", download=download))


def imagenet(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """ImageNet-1k from ``imagenet``; the published validation images (50 000) are the test split here."""
    data = datasets.ImageNet(str(root / "imagenet"), split="train" if split == "train" else "val")
    check_classes("imagenet", [str(len(data.classes))], ("1000",), root / "imagenet")
    return cast(Dataset[Any], data)
