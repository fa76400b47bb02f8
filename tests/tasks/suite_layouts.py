"""Tiny copies of the published layouts beyond the paper's six (see ``layouts``)."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets

from sta_lightning.tasks.published import pictures
from sta_lightning.tasks.published.scenes import RESISC45_FOLDERS, SUN397_FOLDERS
from sta_lightning.tasks.published.things import CIFAR100_NAMES, FOOD101_FOLDERS, PET_BREEDS
from tests.tasks.layouts import RNG, picture


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (9, 99, 199)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_all(files: Sequence[Path], content: bytes) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def write_idx(raw: Path, prefix: str, size: int, first_label: int = 0) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 255, (size, 28, 28), dtype=np.uint8)
    labels = (np.arange(size) % 10 + first_label).astype(np.uint8)
    (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
        struct.pack(">IIII", 0x803, size, 28, 28) + pixels.tobytes()
    )
    (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, size) + labels.tobytes())


def write_fashion_mnist(root: Path) -> None:
    for prefix, size in (("train", 30), ("t10k", 10)):
        write_idx(root / "FashionMNIST" / "raw", prefix, size)


def write_kmnist(root: Path) -> None:
    for prefix, size in (("train", 30), ("t10k", 10)):
        write_idx(root / "KMNIST" / "raw", prefix, size)


def write_emnist(root: Path, part: str = "digits", first_label: int = 0) -> None:
    for prefix, size in (("train", 30), ("test", 10)):
        write_idx(root / "EMNIST" / "raw", f"emnist-{part}-{prefix}", size, first_label)


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "cifar-100-python"
    base.mkdir(parents=True)

    def write(name: str, content: dict[str, object]) -> str:
        (base / name).write_bytes(pickle.dumps(content))
        return md5(base / name)

    def batch(name: str, size: int) -> list[str]:
        pixels = RNG.integers(0, 255, (size, 3072), dtype=np.uint8)
        fine = [(7 * number) % 100 for number in range(size)]
        return [name, write(name, {"data": pixels, "fine_labels": fine, "coarse_labels": [0] * size})]

    names = [name.replace(" ", "_") for name in CIFAR100_NAMES]
    meta = {"filename": "meta", "key": "fine_label_names", "md5": write("meta", {"fine_label_names": names})}
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [batch("train", 20)])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [batch("test", 10)])
    monkeypatch.setattr(datasets.CIFAR100, "meta", meta)


def write_stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels 1..10 as published; images column by column."""
    base = root / "stl10_binary"
    base.mkdir(parents=True)
    (base / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")
    for part, size in (("train", 20), ("test", 10), ("unlabeled", 2)):
        (base / f"{part}_X.bin").write_bytes(
            RNG.integers(0, 255, (size, 3, 96, 96), dtype=np.uint8).tobytes()
        )
        if part != "unlabeled":
            (base / f"{part}_y.bin").write_bytes((np.arange(size) % 10 + 1).astype(np.uint8).tobytes())
    for attribute in ("train_list", "test_list"):
        entries = [[name, md5(base / name)] for name, _ in getattr(datasets.STL10, attribute)]
        monkeypatch.setattr(datasets.STL10, attribute, entries)


def write_fer2013(root: Path, monkeypatch: pytest.MonkeyPatch, icml: bool = False) -> None:
    path = root / "fer2013" / ("icml_face_data.csv" if icml else "fer2013.csv")
    path.parent.mkdir(parents=True)
    usages = ["Training"] * 20 + ["PublicTest"] * 4 + ["PrivateTest"] * 3
    lines = ["emotion, Usage, pixels" if icml else "emotion,pixels,Usage"]
    for number, usage in enumerate(usages):
        pixels = " ".join(str((number + place) % 256) for place in range(48 * 48))
        lines.append(f"{number % 7},{usage},{pixels}" if icml else f"{number % 7},{pixels},{usage}")
    path.write_text("\n".join(lines) + "\n")
    key = "icml" if icml else "fer"
    entries = {**datasets.FER2013._RESOURCES, key: (path.name, md5(path))}
    monkeypatch.setattr(datasets.FER2013, "_RESOURCES", entries)


def write_pcam(root: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="PatchCamelyon needs the package h5py")
    base = root / "pcam"
    base.mkdir(parents=True)
    for part, size in (("train", 8), ("valid", 4), ("test", 5)):
        with h5py.File(base / f"camelyonpatch_level_2_split_{part}_x.h5", "w") as file:
            file["x"] = RNG.integers(0, 255, (size, 96, 96, 3), dtype=np.uint8)
        with h5py.File(base / f"camelyonpatch_level_2_split_{part}_y.h5", "w") as file:
            file["y"] = (np.arange(size) % 2).astype(np.uint8).reshape(size, 1, 1, 1)


def write_sun397(root: Path, classes: Sequence[str] = SUN397_FOLDERS) -> None:
    """Three images a class, of which the partition uses two; the test list in reverse order."""
    base = root / "SUN397"
    names = [[f"{name[0]}/{name}/sun_{letter * 16}.jpg" for letter in "abc"] for name in classes]
    write_all([base / name for three in names for name in three], jpeg())
    (base / "ClassName.txt").write_text("".join(f"/{name[0]}/{name}\n" for name in classes))
    (base / "Partitions").mkdir()
    (base / "Partitions" / "Training_01.txt").write_text("".join(f"/{three[2]}\n" for three in names))
    (base / "Partitions" / "Testing_01.txt").write_text("".join(f"/{three[0]}\r\n" for three in names[::-1]))


def write_resisc45(
    root: Path, monkeypatch: pytest.MonkeyPatch, classes: Sequence[str] = RESISC45_FOLDERS
) -> None:
    base = root / "resisc45"
    lists = {}
    for number, (split, (list_name, _)) in enumerate(pictures.RESISC45_LISTS.items()):
        files = [f"{name}_{number + 1:03d}.jpg" for name in classes]
        write_all([base / "NWPU-RESISC45" / file[:-8] / file for file in files], jpeg())
        (base / list_name).write_text("\n".join(files) + "\n")
        lists[split] = (list_name, md5(base / list_name))
    monkeypatch.setattr(pictures, "RESISC45_LISTS", lists)


def write_food101(root: Path, classes: Sequence[str] = FOOD101_FOLDERS) -> None:
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    for number, part in enumerate(("train", "test")):
        names = {name: [f"{name}/{number + 10}"] for name in classes}
        write_all([base / "images" / f"{one[0]}.jpg" for one in names.values()], jpeg())
        (base / "meta" / f"{part}.json").write_text(json.dumps(names))


def write_flowers102(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels 1..102 as published."""
    base = root / "flowers-102"
    write_all([base / "jpg" / f"image_{number:05d}.jpg" for number in range(1, 13)], jpeg())
    scipy.io.savemat(base / "imagelabels.mat", {"labels": np.arange(102, 90, -1)[None]})
    parts = {"trnid": [[1, 5, 9, 2]], "valid": [[3, 4, 6]], "tstid": [[12, 7, 8, 10, 11]]}
    scipy.io.savemat(base / "setid.mat", {name: np.array(ids) for name, ids in parts.items()})
    entries = dict(datasets.Flowers102._file_dict)
    for key in ("label", "setid"):
        entries[key] = (entries[key][0], md5(base / entries[key][0]))
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", entries)


def write_oxford_pets(root: Path, breeds: Sequence[str] = PET_BREEDS) -> None:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for number, part in enumerate(("trainval", "test")):
        names = [f"{breed.replace(' ', '_')}_{number + 1}" for breed in breeds]
        write_all([base / "images" / f"{name}.jpg" for name in names], jpeg())
        lines = [f"{name} {label + 1} {1 + label % 2} 1" for label, name in enumerate(names)]
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")


def write_rendered_sst2(root: Path) -> None:
    for part, size in (("train", 3), ("valid", 2), ("test", 1)):
        for label in ("negative", "positive"):
            for number in range(size):
                picture(root / "rendered-sst2" / part / label / f"{number}.png")
