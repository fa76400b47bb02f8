"""The sets beyond the paper's six: labels and parts, and wrong or damaged files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torchvision import datasets

from sta_lightning.errors import StaError
from sta_lightning.tasks import get_task
from sta_lightning.tasks.published.scenes import RESISC45_FOLDERS, SUN397_FOLDERS, SUN397_NAMES
from sta_lightning.tasks.published.things import FLOWERS102_NAMES, FOOD101_FOLDERS, PET_BREEDS
from tests.tasks import layouts, suite_layouts

Write = Callable[[Path, pytest.MonkeyPatch], None]


def opened(name: str, split: Any, root: Path) -> Any:
    return cast(Any, get_task(name).dataset(split, root))


def labels(data: Any) -> list[int]:
    return [int(data[index][1]) for index in range(len(data))]


def test_labels_start_at_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_layouts.write_stl10(tmp_path, monkeypatch)
    assert labels(opened("stl10", "test", tmp_path)) == list(range(10))
    suite_layouts.write_flowers102(tmp_path, monkeypatch)
    # Image n has the published label 103 - n, so 102 - n from zero.
    assert labels(opened("flowers102", "test", tmp_path)) == [90, 95, 94, 92, 91]
    suite_layouts.write_oxford_pets(tmp_path)
    assert labels(opened("oxford_pets", "test", tmp_path)) == list(range(37))
    suite_layouts.write_cifar100(tmp_path, monkeypatch)
    assert labels(opened("cifar100", "test", tmp_path)) == [7 * number % 100 for number in range(10)]


def test_published_parts_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_layouts.write_flowers102(tmp_path, monkeypatch)
    assert [len(opened("flowers102", split, tmp_path)) for split in ("train", "validation", "test")] == [
        4,
        3,
        5,
    ]
    suite_layouts.write_rendered_sst2(tmp_path)
    assert [len(opened("rendered_sst2", split, tmp_path)) for split in ("train", "validation", "test")] == [
        6,
        4,
        2,
    ]
    suite_layouts.write_resisc45(tmp_path, monkeypatch)
    found = {split: opened("resisc45", split, tmp_path).files for split in ("train", "validation", "test")}
    assert {split: files[-1].name for split, files in found.items()} == {
        "train": "wetland_001.jpg", "validation": "wetland_002.jpg", "test": "wetland_003.jpg",
    }  # fmt: skip
    suite_layouts.write_pcam(tmp_path)
    assert [len(opened("pcam", split, tmp_path)) for split in ("train", "validation", "test")] == [8, 4, 5]
    suite_layouts.write_fer2013(tmp_path, monkeypatch)
    # 20 training images, two of them for validation; both test parts of the competition.
    assert [len(opened("fer2013", split, tmp_path)) for split in ("train", "validation", "test")] == [
        18,
        2,
        7,
    ]


def test_fer2013_reads_the_other_file_of_the_competition_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite_layouts.write_fer2013(tmp_path, monkeypatch, icml=True)
    assert labels(opened("fer2013", "test", tmp_path)) == [6, 0, 1, 2, 3, 4, 5]
    task = get_task("fer2013")
    before = task.fingerprint("test", tmp_path)
    os.utime(tmp_path / "fer2013" / "icml_face_data.csv", ns=(1, 1))
    assert task.fingerprint("test", tmp_path) != before


def test_sun397_follows_the_first_partition(tmp_path: Path) -> None:
    suite_layouts.write_sun397(tmp_path)
    test = opened("sun397", "test", tmp_path)
    assert labels(test)[:3] == [396, 395, 394]
    assert test.dataset._image_files[test.indices[0]].name == f"sun_{'a' * 16}.jpg"
    train = get_task("sun397").opener("train", tmp_path)
    assert len(cast(Any, train)) == 397
    assert SUN397_NAMES[SUN397_FOLDERS.index("church/indoor")] == "indoor church"
    assert SUN397_NAMES[SUN397_FOLDERS.index("subway_station/platform")] == "subway station platform"


def test_emnist_is_the_digits_as_the_files_have_them(tmp_path: Path) -> None:
    suite_layouts.write_emnist(tmp_path)
    data = opened("emnist", "test", tmp_path)
    assert labels(data) == list(range(10))
    raw = (tmp_path / "EMNIST" / "raw" / "emnist-digits-test-images-idx3-ubyte").read_bytes()[16:]
    assert data[3][0].tobytes() == raw[3 * 784 : 4 * 784]


def test_class_names_agree_with_torchvision() -> None:
    assert [name.split()[0] for name in get_task("fashion_mnist").class_names[2:]] == [
        name.split()[0].lower() for name in datasets.FashionMNIST.classes[2:]
    ]
    assert list(get_task("kmnist").class_names) == datasets.KMNIST.classes
    theirs = datasets.Flowers102.classes
    assert [name for name, other in zip(FLOWERS102_NAMES, theirs, strict=True) if name != other] == [
        "pink and yellow dahlia"
    ]
    assert list(SUN397_FOLDERS) == sorted(SUN397_FOLDERS)
    assert list(FOOD101_FOLDERS) == sorted(FOOD101_FOLDERS)
    assert list(RESISC45_FOLDERS) == sorted(RESISC45_FOLDERS)


def _damaged(path: str, write: Write) -> Write:
    def wrong(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(root, monkeypatch)
        file = root / path
        file.write_bytes(file.read_bytes() + b"x")

    return wrong


def _without(path: str, write: Write) -> Write:
    def wrong(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(root, monkeypatch)
        (root / path).unlink()

    return wrong


def _sun(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_layouts.write_sun397(root)


def _pcam_broken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_layouts.write_pcam(root)
    (root / "pcam" / "camelyonpatch_level_2_split_test_x.h5").write_bytes(b"half a download")


def _fer_of_the_competition(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "fer2013").mkdir()
    for name in ("train.csv", "test.csv"):
        (root / "fer2013" / name).write_text("emotion,pixels\n")


@pytest.mark.parametrize(
    ("name", "write", "complaint"),
    [
        # Checksums of the publisher's files.
        ("cifar100", _damaged("cifar-100-python/test", suite_layouts.write_cifar100), "corrupted"),
        ("stl10", _damaged("stl10_binary/test_y.bin", suite_layouts.write_stl10), "corrupted"),
        ("fer2013", _damaged("fer2013/fer2013.csv", suite_layouts.write_fer2013), "corrupted"),
        ("flowers102", _damaged("flowers-102/setid.mat", suite_layouts.write_flowers102), "corrupted"),
        ("resisc45", _damaged("resisc45/resisc45-test.txt", suite_layouts.write_resisc45), "MD5 sum"),
        ("pcam", _pcam_broken, "test images of the task 'pcam'.*could not be read"),
        # Images that a list names.
        (
            "resisc45",
            _without("resisc45/NWPU-RESISC45/lake/lake_003.jpg", suite_layouts.write_resisc45),
            r"1 of 45 files are not there.*lake_003",
        ),
        (
            "sun397",
            _without(f"SUN397/a/abbey/sun_{'a' * 16}.jpg", _sun),
            r"1 of 397 files are not there.*abbey.*Unpack",
        ),
        # Classes.
        ("sun397", lambda root, patch: suite_layouts.write_sun397(root, SUN397_FOLDERS[1:]), "397 classes.*'abbey'"),
        (
            "resisc45",
            lambda root, patch: suite_layouts.write_resisc45(root, patch, (*RESISC45_FOLDERS, "zoo")),
            "45 classes.*not its own: 'zoo'",
        ),
        ("food101", lambda root, patch: suite_layouts.write_food101(root, FOOD101_FOLDERS[:-1]), "'waffles'"),
        ("oxford_pets", lambda root, patch: suite_layouts.write_oxford_pets(root, PET_BREEDS[:-1]), "'Yorkshire Terrier'"),
        ("oxford_pets", lambda root, patch: suite_layouts.write_oxford_pets(root, PET_BREEDS[::-1]), "another order"),
        # Labels beyond the classes: another part of EMNIST under this one's name.
        (
            "emnist",
            lambda root, patch: suite_layouts.write_emnist(root, first_label=1),
            "labels from 1 to 10; its 10 classes are 0 to 9",
        ),
        ("emnist", lambda root, patch: suite_layouts.write_emnist(root, "letters"), "emnist-digits-test-images"),
        ("fer2013", _fer_of_the_competition, r"fer2013\.csv or fer2013/icml_face_data\.csv.*Kaggle"),
    ],
)  # fmt: skip
def test_wrong_files_are_one_message(
    name: str, write: Write, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, monkeypatch)
    with pytest.raises(StaError, match=complaint) as caught:
        get_task(name).dataset("test", tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "write", "file"),
    [
        ("gtsrb", layouts.write_gtsrb, "gtsrb/GTSRB/Final_Test/Images/00000.ppm"),
        ("oxford_pets", suite_layouts.write_oxford_pets, "oxford-iiit-pet/images/Abyssinian_2.jpg"),
        ("food101", suite_layouts.write_food101, "food-101/images/apple_pie/11.jpg"),
    ],
)
def test_an_image_that_does_not_decode_is_named(name: str, write: Any, file: str, tmp_path: Path) -> None:
    write(tmp_path)
    data = opened(name, "test", tmp_path)
    whole = (tmp_path / file).read_bytes()
    for content, why in ((b"not an image", "it is no image"), (whole[:-8], "truncated")):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(StaError, match=f"(?s){file}.*cannot be decoded.*{why}"):
            data[0]


def test_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_layouts.write_pcam(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(StaError, match=r"h5py.*sta-lightning\[pcam\]"):
        get_task("pcam").dataset("test", tmp_path)


@pytest.mark.parametrize("name", ["sun397", "resisc45", "fer2013", "cars", "imagenet"])
def test_what_cannot_be_fetched_says_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(StaError, match=f"'{name}' cannot be downloaded"):
        get_task(name).download(tmp_path)


def test_all_three_parts_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(data: Any) -> None:
        asked.append(data._split)
        if len(asked) == 1:
            suite_layouts.write_rendered_sst2(tmp_path)

    monkeypatch.setattr(datasets.RenderedSST2, "_download", fetch)
    get_task("rendered_sst2").download(tmp_path)
    assert asked == ["train", "val", "test"]


def test_images_of_every_mode_become_three_channels(tmp_path: Path) -> None:
    from sta_lightning.tasks.images import read_image

    for mode, color in (("L", 7), ("RGBA", (1, 2, 3, 255)), ("P", 3), ("CMYK", (1, 2, 3, 4))):
        path = tmp_path / f"{mode}.{'tiff' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (3, 2), color).save(path)
        assert read_image(path).mode == "RGB"
    with pytest.raises(StaError, match=r"absent\.png is not there"):
        read_image(tmp_path / "absent.png")


def test_labels_that_lie_in_memory_are_found() -> None:
    from torch.utils.data import ConcatDataset, Subset, TensorDataset

    from sta_lightning.tasks.published.place import known_labels

    class Labelled(TensorDataset):
        targets = (0, 3, 1)

    data = Labelled(torch.zeros(3))
    both = known_labels(ConcatDataset([Subset(data, [0]), data]))
    assert both is not None
    assert both.tolist() == [0, 3, 1, 0, 3, 1]
    assert known_labels(TensorDataset(torch.zeros(3))) is None
