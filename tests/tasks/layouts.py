"""Tiny copies of the published file layouts, for torchvision's own classes to read."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets

from sta_lightning.tasks.published.names import CIFAR10_NAMES, DTD_FOLDERS, EUROSAT_FOLDERS
from sta_lightning.tasks.published.things import CAR_NAMES

RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = (10, 8), mode: str = "RGB") -> Path:
    """Write an image of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(RNG.integers(0, 255, shape, dtype=np.uint8), mode).save(path)
    return path


def write_mnist(root: Path, sizes: tuple[int, int] = (30, 10)) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, size in zip(("train", "t10k"), sizes, strict=True):
        pixels = RNG.integers(0, 255, (size, 28, 28), dtype=np.uint8)
        labels = (np.arange(size) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, size, 28, 28) + pixels.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, size) + labels.tobytes())


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels 1..10 as published, 10 being the digit zero; checksums of the tiny files."""
    folder = root / "svhn"
    folder.mkdir(parents=True)
    entries = dict(datasets.SVHN.split_list)
    for split, size in (("train", 20), ("test", 10)):
        path = folder / f"{split}_32x32.mat"
        labels = (np.arange(size) % 10 + 1).astype(np.uint8)[:, None]
        scipy.io.savemat(path, {"X": RNG.integers(0, 255, (32, 32, 3, size), dtype=np.uint8), "y": labels})
        entries[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", entries)


def write_gtsrb(root: Path, classes: int = 43) -> None:
    base = root / "gtsrb" / "GTSRB"
    for label in range(classes):
        picture(base / "Training" / f"{label:05d}" / "00000_00000.ppm")
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number in range(5):
        picture(base / "Final_Test" / "Images" / f"{number:05d}.ppm")
        lines.append(f"{number:05d}.ppm;10;8;1;1;7;7;{40 - number}")
    (root / "gtsrb" / "GT-final_test.csv").write_text("\n".join(lines) + "\n")


def write_dtd(root: Path, classes: tuple[str, ...] = DTD_FOLDERS) -> None:
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for part in ("train", "val", "test"):
        names = [f"{name}/{name}_{part}.jpg" for name in classes]
        for name in names:
            picture(base / "images" / name)
        (base / "labels" / f"{part}1.txt").write_text("\n".join(names) + "\n")


def write_eurosat(root: Path, per_class: int = 11, classes: tuple[str, ...] = EUROSAT_FOLDERS) -> None:
    for name in classes:
        for number in range(per_class):
            picture(root / "eurosat" / "2750" / name / f"{name}_{number}.jpg", (4, 4))


def write_cars(root: Path) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.empty((1, len(CAR_NAMES)), dtype=object)
    names[0] = CAR_NAMES
    scipy.io.savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    for split, target, classes in (
        ("train", base / "devkit" / "cars_train_annos.mat", (1, 196, 17, 2)),
        ("test", base / "cars_test_annos_withlabels.mat", (5, 196)),
    ):
        kinds = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
        annotations = np.empty((1, len(classes)), dtype=kinds)
        for number, label in enumerate(classes):
            name = f"{number + 1:05d}.jpg"
            picture(base / f"cars_{split}" / name, (12, 8))
            annotations[0, number] = (np.uint8(3), np.uint8(label), name)
        scipy.io.savemat(target, {"annotations": annotations})


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "cifar-10-batches-py"
    base.mkdir(parents=True)

    def write(name: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content)
        (base / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name: str, size: int) -> list[str]:
        pixels = RNG.integers(0, 255, (size, 3072), dtype=np.uint8)
        return [name, write(name, {"data": pixels, "labels": [i % 10 for i in range(size)]})]

    monkeypatch.setattr(datasets.CIFAR10, "train_list", [batch(f"data_batch_{n}", 4) for n in range(1, 6)])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [batch("test_batch", 10)])
    meta = write("batches.meta", {"label_names": list(CIFAR10_NAMES)})
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta}
    )


def write_imagenet(root: Path, classes: int = 1000) -> None:
    base = root / "imagenet"
    buffer = io.BytesIO()
    Image.new("L", (3, 2), 7).save(buffer, "JPEG")
    wnids = [f"n{number:08d}" for number in range(classes)]
    for split in ("train", "val"):
        for wnid in wnids:
            folder = base / split / wnid
            folder.mkdir(parents=True)
            for number in range(2 if split == "train" else 1):
                (folder / f"{number}.JPEG").write_bytes(buffer.getvalue())
    torch.save(({wnid: (f"name {wnid}",) for wnid in wnids}, wnids), base / "meta.bin")
