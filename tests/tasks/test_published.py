"""The published sets through torchvision's own classes, on tiny copies of the published layouts."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision import datasets

from sta_lightning.errors import StaError
from sta_lightning.tasks import SPLITS, get_task
from sta_lightning.tasks.published import EPOCHS, PUBLISHED_TASKS, SUITES
from sta_lightning.tasks.published.names import DTD_FOLDERS, EUROSAT_FOLDERS
from sta_lightning.tasks.published.things import CAR_NAMES
from tests.tasks import layouts, suite_layouts

CLASSES = {
    "mnist": 10, "svhn": 10, "gtsrb": 43, "dtd": 47, "eurosat": 10, "cars": 196, "sun397": 397, "resisc45": 45, "stl10": 10,
    "oxford_pets": 37, "flowers102": 102, "cifar100": 100, "pcam": 2, "fer2013": 7, "cifar10": 10, "food101": 101,
    "fashion_mnist": 10, "rendered_sst2": 2, "emnist": 10, "kmnist": 10, "imagenet": 1000,
}  # fmt: skip
NOT_FETCHED = ("cars", "imagenet", "sun397", "resisc45", "fer2013")
OWN_VALIDATION = ("resisc45", "flowers102", "pcam", "rendered_sst2")


def labels(data: Any) -> list[int]:
    return [int(data[index][1]) for index in range(len(data))]


def write(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = layouts if hasattr(layouts, f"write_{name}") else suite_layouts
    writer: Callable[..., None] = getattr(home, f"write_{name}")
    if "monkeypatch" in inspect.signature(writer).parameters:
        writer(root, monkeypatch)
    else:
        writer(root)


def test_class_names_are_complete_and_distinct() -> None:
    assert {name: len(task.class_names) for name, task in PUBLISHED_TASKS.items()} == CLASSES
    for task in PUBLISHED_TASKS.values():
        assert len(set(task.class_names)) == len(task.class_names)
        assert len(task.templates) >= 2
    assert list(DTD_FOLDERS) == sorted(DTD_FOLDERS)
    assert list(EUROSAT_FOLDERS) == sorted(EUROSAT_FOLDERS)
    assert (
        get_task("cars").class_names[CAR_NAMES.index("Tesla Model S Sedan 2012")]
        == "2012 Tesla Model S Sedan"
    )


def test_suites_name_known_tasks_and_every_one_has_its_epochs() -> None:
    sizes = {"paper6": 6, "eight": 8, "fourteen": 14, "twenty": 20}
    assert {name: len(set(suite)) for name, suite in SUITES.items()} == sizes
    assert set(SUITES["paper6"]) < set(SUITES["eight"]) < set(SUITES["fourteen"]) < set(SUITES["twenty"])
    assert set(SUITES["twenty"]) == set(EPOCHS) == set(PUBLISHED_TASKS) - {"imagenet"}


@pytest.mark.parametrize("name", list(CLASSES))
def test_reads_the_published_layout(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(name, tmp_path, monkeypatch)
    task = get_task(name)
    opened = {split: cast(Any, task.dataset(split, tmp_path)) for split in SPLITS}
    for data in opened.values():
        assert len(data) > 0
        image, label = data[0]
        assert isinstance(image, Image.Image)
        assert 0 <= int(label) < CLASSES[name]
    train, validation = opened["train"], opened["validation"]
    assert len(pickle.loads(pickle.dumps(opened["test"]))) == len(opened["test"])
    if name in OWN_VALIDATION:
        return
    # Training and validation are parts of the same published training set, without an image in
    # common.
    assert isinstance(train, Subset)
    assert isinstance(validation, Subset)
    assert sorted([*train.indices, *validation.indices]) == list(range(len(cast(Any, train.dataset))))
    assert len(validation) == max(1, len(cast(Any, train.dataset)) // 10)
    assert len(pickle.loads(pickle.dumps(train))) == len(train)


def test_environment_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_mnist(tmp_path)
    monkeypatch.delenv("STA_DATA", raising=False)
    with pytest.raises(StaError, match=r"mnist.*`root`.*STA_DATA"):
        get_task("mnist").dataset("test")
    monkeypatch.setenv("STA_DATA", str(tmp_path))
    assert len(cast(Any, get_task("mnist").dataset("test"))) == 10


@pytest.mark.parametrize("name", list(CLASSES))
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_says_which_files_to_put_where(name: str, split: Any, tmp_path: Path) -> None:
    part = split if split == "test" or name in OWN_VALIDATION else "train"
    task = get_task(name)
    with pytest.raises(StaError) as caught:
        task.dataset(split, tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    for file in cast(Any, task.opener).files[part]:
        assert file in message
    assert ("download: true" in message) == (name not in NOT_FETCHED)
    assert (task.downloader is not None) == (name not in NOT_FETCHED)


def test_labels_follow_the_publishers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_svhn(tmp_path, monkeypatch)
    assert labels(get_task("svhn").dataset("test", tmp_path)) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    layouts.write_gtsrb(tmp_path)
    assert labels(get_task("gtsrb").dataset("test", tmp_path)) == [40, 39, 38, 37, 36]
    layouts.write_cars(tmp_path)
    assert labels(get_task("cars").dataset("test", tmp_path)) == [4, 195]


@pytest.mark.parametrize(
    ("name", "write", "folder"),
    [
        ("eurosat", layouts.write_eurosat, "eurosat/2750/Forest"),
        ("gtsrb", layouts.write_gtsrb, "gtsrb/GTSRB/Training/00003"),
    ],
)
def test_hidden_files_are_no_images(name: str, write: Any, folder: str, tmp_path: Path) -> None:
    write(tmp_path)
    before = labels(get_task(name).dataset("train", tmp_path))
    for hidden in (".ipynb_checkpoints/0-checkpoint", "._0"):
        for ending in ("ppm", "jpg"):
            layouts.picture(tmp_path / folder / f"{hidden}.{ending}")
    assert labels(get_task(name).dataset("train", tmp_path)) == before
    # torchvision takes every folder beside the classes for one more.
    layouts.picture((tmp_path / folder).parent / ".hidden" / "0.ppm")
    with pytest.raises(StaError, match=r"'\.hidden'"):
        get_task(name).dataset("train", tmp_path)


def test_dtd_trains_on_both_published_lists(tmp_path: Path) -> None:
    layouts.write_dtd(tmp_path)
    task = get_task("dtd")
    assert len(cast(Any, task.opener("train", tmp_path))) == 2 * 47
    assert labels(task.dataset("test", tmp_path)) == list(range(47))


def test_eurosat_split_is_ours_disjoint_and_balanced(tmp_path: Path) -> None:
    layouts.write_eurosat(tmp_path, per_class=20)
    task = get_task("eurosat")
    train = cast(Any, task.opener("train", tmp_path))
    test = cast(Any, task.dataset("test", tmp_path))
    assert set(train.indices).isdisjoint(test.indices)
    assert len(train) + len(test) == 200
    found = torch.tensor(labels(test))
    assert torch.bincount(found).tolist() == [2] * 10
    assert cast(Any, task.dataset("test", tmp_path)).indices == test.indices


@pytest.mark.parametrize(
    ("name", "write_wrongly", "complaint"),
    [
        ("gtsrb", lambda root: layouts.write_gtsrb(root, classes=40), r"43 classes.*00040"),
        ("dtd", lambda root: layouts.write_dtd(root, DTD_FOLDERS[:-1]), r"47 classes.*zigzagged"),
        (
            "eurosat",
            lambda root: layouts.write_eurosat(root, 2, (*EUROSAT_FOLDERS, "Snow")),
            r"not its own.*Snow",
        ),
        ("imagenet", lambda root: layouts.write_imagenet(root, classes=3), r"1000"),
    ],
)
def test_refuses_folders_that_would_shift_labels(
    name: str, write_wrongly: Callable[[Path], None], complaint: str, tmp_path: Path
) -> None:
    write_wrongly(tmp_path)
    with pytest.raises(StaError, match=complaint):
        get_task(name).dataset("train", tmp_path)


def test_damaged_file_is_one_message(tmp_path: Path) -> None:
    layouts.write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"broken")
    with pytest.raises(StaError, match=r"test images of the task 'mnist'.*could not be read"):
        get_task("mnist").dataset("test", tmp_path)
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn" / "test_32x32.mat").write_bytes(b"broken")
    with pytest.raises(StaError, match="corrupted"):
        get_task("svhn").dataset("test", tmp_path)


def test_download_goes_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Path] = []

    def fetch(data: Any) -> None:
        if not (tmp_path / "MNIST").exists():
            layouts.write_mnist(tmp_path)
        fetched.append(Path(data.root))

    monkeypatch.setattr(datasets.MNIST, "download", fetch)
    get_task("mnist").download(tmp_path)
    assert fetched == [tmp_path, tmp_path]

    def fail(data: Any) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(datasets.MNIST, "download", fail)
    with pytest.raises(StaError, match="could not be fetched: Error downloading"):
        get_task("mnist").download(tmp_path)
    with pytest.raises(StaError, match="'cars' cannot be downloaded"):
        get_task("cars").download(tmp_path)
