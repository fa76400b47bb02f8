"""Published sets of image files, through torchvision's classes; ``root`` is one folder for all."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from sta_lightning.encoders.pictures import read_image, subfolders
from sta_lightning.errors import StaError
from sta_lightning.tasks.images import ImageList, published_list, require_files
from sta_lightning.tasks.published.arrays import by_split
from sta_lightning.tasks.published.names import DTD_FOLDERS, EUROSAT_FOLDERS, GTSRB_NAMES
from sta_lightning.tasks.published.place import check_classes
from sta_lightning.tasks.published.scenes import RESISC45_FOLDERS, SUN397_FOLDERS
from sta_lightning.tasks.published.things import CAR_NAMES, FOOD101_FOLDERS, PET_BREEDS
from sta_lightning.tasks.split import SPLIT_SEED
from sta_lightning.tasks.task import Split

_EUROSAT_TEST_SHARE = 0.1

RESISC45_LISTS = {
    "train": ("resisc45-train.txt", "b5a4c05a37de15e4ca886696a85c403e"),
    "validation": ("resisc45-val.txt", "a0770cee4c5ca20b8c32bbd61e114805"),
    "test": ("resisc45-test.txt", "3dda9e4988b47eb1de9f07993653eb08"),
}
"""The lists of "In-domain representation learning for remote sensing", and their MD5 sums."""

SUN397_LISTS = {"train": "Training_01.txt", "test": "Testing_01.txt"}
"""The first of the publisher's ten partitions."""

flowers102 = partial(by_split, datasets.Flowers102, loader=read_image)


def rendered_sst2(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """Rendered SST2."""
    data = by_split(datasets.RenderedSST2, split, root, download)
    return published_list(cast(Any, data)._samples, root)


def gtsrb(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """GTSRB as torchvision fetches it."""
    data = datasets.GTSRB(str(root), split=split, download=download)
    if split == "train":
        folder = root / "gtsrb" / "GTSRB" / "Training"
        # Hidden ones count: torchvision would shift the labels of all that come after them.
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        check_classes("gtsrb", found, tuple(f"{label:05d}" for label in range(len(GTSRB_NAMES))), folder)
    # The class has read the annotations; our reader names a broken file, its own does not.
    return published_list(data._samples, root)


def dtd(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """DTD, partition 1: training and validation lists together (see docs/data.md), and test."""
    parts = [
        datasets.DTD(str(root), split=name, download=download, loader=read_image)
        for name in (("train", "val") if split == "train" else ("test",))
    ]
    for part in parts:
        check_classes("dtd", part.classes, DTD_FOLDERS, root / "dtd" / "dtd" / "images")
    return cast(Dataset[Any], ConcatDataset(parts) if len(parts) > 1 else parts[0])


def eurosat(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """EuroSAT (RGB) in a split of ours, as there is no official one.

    Of each class's images in the sorted order of their file names, a tenth (rounded down, at least
    one) is for testing, drawn by ``torch.randperm`` with a generator seeded 0, class after class in
    alphabetical order.
    """
    data = datasets.EuroSAT(str(root), download=download)
    check_classes("eurosat", data.classes, EUROSAT_FOLDERS, root / "eurosat" / "2750")
    whole = published_list(data.samples, root)
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    labels = torch.tensor(whole.labels)
    tested = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(len(EUROSAT_FOLDERS)):
        own = (labels == label).nonzero().flatten()
        chosen = torch.randperm(len(own), generator=generator)[: max(1, int(len(own) * _EUROSAT_TEST_SHARE))]
        tested[own[chosen]] = True
    return Subset(whole, (tested if split == "test" else ~tested).nonzero().flatten().tolist())


def cars(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """Stanford Cars."""
    data = datasets.StanfordCars(str(root), split=split, download=download, loader=read_image)
    names = tuple(_letters(name) for name in CAR_NAMES)
    check_classes("cars", [_letters(name) for name in data.classes], names, root / "stanford_cars" / "devkit")
    return cast(Dataset[Any], data)


def _letters(name: str) -> str:
    return re.sub(r"\W+", " ", name.lower()).strip()


def imagenet(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """ImageNet-1k; its validation images are the test split here."""
    part = "train" if split == "train" else "val"
    data = datasets.ImageNet(str(root / "imagenet"), split=part)
    check_classes("imagenet", [str(len(data.classes))], ("1000",), root / "imagenet")
    return published_list(data.samples, root)


def sun397(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """SUN397's first partition: its lists choose among all images, in their order."""
    folder = root / "SUN397"
    chosen = folder / "Partitions" / SUN397_LISTS[split]
    names = [line.strip().lstrip("/") for line in chosen.read_text().splitlines() if line.strip()]
    data = datasets.SUN397(str(root), loader=read_image)
    check_classes("sun397", data.classes, SUN397_FOLDERS, folder / "ClassName.txt")
    places = {file.relative_to(folder).as_posix(): index for index, file in enumerate(data._image_files)}
    require_files(
        [folder / name for name in names],
        f"Of the images that {chosen} lists",
        "Unpack the published archive there.",
    )
    return Subset(data, [places[name] for name in names])


def resisc45(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """NWPU-RESISC45 as arXiv:1911.06721 splits it; torchvision has no class for the set."""
    base = root / "resisc45"
    name, md5 = RESISC45_LISTS[split]
    if not check_integrity(base / name, md5):
        raise StaError(
            f"{base / name} is not the published list of {split} images (its MD5 sum should be {md5}): put that file there, "
            "unchanged to the line ends."
        )
    folder = base / "NWPU-RESISC45"
    check_classes("resisc45", subfolders(folder), RESISC45_FOLDERS, folder)
    files = [folder / line.rsplit("_", 1)[0] / line for line in (base / name).read_text().split()]
    require_files(files, f"Of the images that {base / name} lists", "Unpack NWPU-RESISC45.rar there.")
    labels = {name: label for label, name in enumerate(RESISC45_FOLDERS)}
    return ImageList(files, [labels[file.parent.name] for file in files])


def food101(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """Food-101."""
    data = datasets.Food101(str(root), split=split, download=download, loader=read_image)
    check_classes("food101", data.classes, FOOD101_FOLDERS, root / "food-101" / "meta")
    return cast(Dataset[Any], data)


def oxford_pets(split: Split, root: Path, download: bool) -> Dataset[Any]:
    """Oxford-IIIT Pet, by breed."""
    part = "trainval" if split == "train" else "test"
    data = datasets.OxfordIIITPet(str(root), split=part, download=download)
    check_classes(
        "oxford_pets", data.classes, PET_BREEDS, root / "oxford-iiit-pet" / "annotations" / f"{part}.txt"
    )
    return ImageList(data._images, data._labels)  # as for GTSRB
