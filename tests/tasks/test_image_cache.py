"""Decoded images on disk: the same bits, once, and again when what decides them changes."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from sta_lightning.errors import StaError
from sta_lightning.tasks import MultiTaskDataModule, Task, TaskDataModule
from sta_lightning.tasks.image_cache import CachedDataset, files_fingerprint
from sta_lightning.tasks.prepared import PreparedDataset
from tests.conftest import REPOSITORY
from tests.tasks import layouts

SIZES = ((40, 33), (32, 32), (20, 50))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Folders of images of three sizes and two colour modes, described by a YAML file."""
    for split, count in (("train", 6), ("test", 3)):
        for number, name in enumerate(("apple", "pear")):
            for image in range(count):
                file = tmp_path / "pictures" / split / name / f"{image}.png"
                layouts.picture(file, SIZES[image % 3], "RGB" if (image + number) % 2 else "L")
    (tmp_path / "fruit.yaml").write_text("{root: pictures, train: train, test: test}")
    return tmp_path / "fruit.yaml"


def module(task: Path, **settings: Any) -> TaskDataModule:
    return TaskDataModule(str(task), **{"batch_size": 4, "cache_images": True, **settings})


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every image file that is opened from now on."""
    opened: list[str] = []
    original = Image.open

    def note(file: Any, *rest: Any, **named: Any) -> Any:
        opened.append(str(getattr(file, "name", file)))
        return original(file, *rest, **named)

    monkeypatch.setattr(Image, "open", note)
    return opened


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("settings", [{}, {"image_size": 48}, {"num_workers": 1}, {"test_limit": 5}])
def test_the_same_bits_as_without(task: Path, cache: Path, split: Any, settings: dict[str, Any]) -> None:
    plain, kept = module(task, cache_images=False, **settings), module(task, **settings)
    before = torch.get_rng_state()
    assert isinstance(plain.dataset(split), PreparedDataset)
    assert isinstance(kept.dataset(split), CachedDataset)
    pairs = list(zip(plain.evaluation_loader(split), kept.evaluation_loader(split), strict=True))
    assert torch.equal(before, torch.get_rng_state())
    for (images, labels), (found, found_labels) in pairs:
        assert torch.equal(images, found)
        assert torch.equal(labels, found_labels)
        assert found.dtype == torch.float32
    index = len(plain.dataset(split)) - 1
    image, label = pickle.loads(pickle.dumps(kept.dataset(split)))[index]
    assert torch.equal(image, plain.dataset(split)[index][0])
    assert (label, type(label)) == (plain.dataset(split)[index][1], int)
    assert len(list(kept.dataset(split))) == len(plain.dataset(split)) == index + 1  # type: ignore[call-overload]


def test_tensors_of_one_size_are_resized_alike(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sta_lightning.tasks.miniature import suite

    monkeypatch.setattr(suite, "SPLIT_SIZES", {"train": 8, "validation": 8, "test": 70})
    settings: dict[str, Any] = {"image_size": 40, "batch_size": 7}
    plain, kept = (TaskDataModule("digits", cache_images=on, **settings) for on in (False, True))
    for (images, _), (found, _) in zip(plain.test_dataloader(), kept.test_dataloader(), strict=True):
        assert torch.equal(images, found)


def test_images_are_decoded_once_for_all_later_runs(
    task: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = counted(monkeypatch)
    module(task).setup("test")
    assert len(opened) == 6
    for _ in range(2):
        several = MultiTaskDataModule([str(task)], batch_size=4, cache_images=True)
        several.setup("test")
        assert sum(len(labels) for _, labels in several.test_dataloader()[0]) == 6
    assert len(opened) == 6
    assert [file.name[:8] for file in (cache / "fruit").iterdir()] == ["test-32-"]


def test_training_images_are_read_as_they_are(task: Path, cache: Path) -> None:
    data = module(task, augment=True)
    data.setup("fit")
    assert isinstance(data.dataset("train"), PreparedDataset)
    assert isinstance(data.dataset("test", augment=True), PreparedDataset)
    assert [file.name[:11] for file in (cache / "fruit").iterdir()] == ["validation-"]
    first, second = ([image for image, _ in data.train_dataloader()] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("change", ["content", "time", "new", "gone", "class"])
def test_a_change_of_the_files_makes_another_cache(task: Path, cache: Path, change: str) -> None:
    before = [image for image, _ in module(task).test_dataloader()]
    file = task.parent / "pictures" / "test" / "apple" / "0.png"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    if change == "gone":
        file.unlink()
    elif change == "new":
        layouts.picture(file.with_name("00.png"), SIZES[0])
    elif change == "class":
        task.write_text("{root: pictures, train: train, test: test, include: [pear]}")
    elif change == "time":
        os.utime(file, ns=(times[0], times[1] + 1))
    else:
        layouts.picture(file, (90, 80))
        os.utime(file, ns=times)  # its size alone tells
    after, plain = (
        [image for image, _ in module(task, cache_images=on).test_dataloader()] for on in (True, False)
    )
    assert all(torch.equal(one, other) for one, other in zip(after, plain, strict=True))
    assert len(list((cache / "fruit").iterdir())) == 2
    if change == "content":
        assert not torch.equal(before[0], after[0])


def test_the_place_of_the_files_does_not_matter(task: Path, cache: Path, tmp_path: Path) -> None:
    module(task).setup("test")
    (tmp_path / "pictures").rename(tmp_path / "moved")
    task.write_text("{root: moved, train: train, test: test}")
    module(task).setup("test")
    assert len(list((cache / "fruit").iterdir())) == 1
    nothing = files_fingerprint(tmp_path, [])
    assert (
        nothing
        != files_fingerprint(tmp_path / "moved")
        == files_fingerprint(tmp_path / "moved", ["train", "test"])
    )


@pytest.mark.parametrize("damage", ["short", "empty", "other"])
def test_a_damaged_cache_is_made_again(task: Path, cache: Path, damage: str) -> None:
    module(task).setup("test")
    (file,) = (cache / "fruit").iterdir()
    whole = file.read_bytes()
    if damage == "other":
        with file.open("wb") as stream:
            np.save(stream, np.zeros(3))
    else:
        file.write_bytes(whole[:-1] if damage == "short" else b"")
    module(task).setup("test")
    assert file.read_bytes() == whole


def test_files_that_change_while_they_are_read_are_told(
    task: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PreparedDataset.pixels

    def meddling(self: PreparedDataset, indices: Any) -> Any:
        (task.parent / "pictures" / "test" / "pear" / "0.png").touch()
        return original(self, indices)

    monkeypatch.setattr(PreparedDataset, "pixels", meddling)
    with pytest.raises(StaError, match=r"test images of 'fruit' changed while they were read"):
        module(task).setup("test")
    assert list((cache / "fruit").iterdir()) == []


def full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("hindrance", ["a file in the way", "a full disk"])
def test_where_the_cache_cannot_be_written_the_images_are_decoded(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hindrance: str
) -> None:
    plain = module(task)
    plain.cache_images = False
    plain.setup("test")
    if hindrance == "a full disk":
        monkeypatch.setattr(os, "fsync", full)
        monkeypatch.setenv("STA_CACHE", str(tmp_path / "cache"))
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("STA_CACHE", str(tmp_path / "file"))
    data = module(task)
    with pytest.warns(
        UserWarning, match=r"test images of 'fruit' could not be kept.*cannot write.*STA_CACHE"
    ):
        data.setup("test")
    pairs = list(zip(data.dataset("test"), plain.dataset("test"), strict=True))
    assert pairs
    assert all(torch.equal(ours[0], theirs[0]) and ours[1] == theirs[1] for ours, theirs in pairs)
    assert not list(tmp_path.glob("cache/images/*/*"))


class Nothing(Dataset[tuple[Image.Image, int]]):
    """One black image."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (32, 32)), 0


def test_a_task_that_cannot_tell_of_changes_is_not_cached(cache: Path) -> None:
    data = TaskDataModule("digits", cache_images=True)
    data.task = Task("own", ("a",), ("a {}",), lambda split, root: Nothing())
    with pytest.raises(StaError, match=r"'own' cannot be cached.*fingerprint"):
        data.setup("test")
    data.cache_images = False
    data.setup("test")
    assert not cache.exists()


def test_published_files_are_watched(tmp_path: Path, cache: Path) -> None:
    layouts.write_mnist(tmp_path, (40, 10))
    settings: dict[str, Any] = {"root": str(tmp_path), "cache_images": True}
    for _ in range(2):
        TaskDataModule("mnist", **settings).setup("fit")
        TaskDataModule("mnist", **settings).setup("test")
    assert sorted(file.name.split("-")[0] for file in (cache / "mnist").iterdir()) == ["test", "validation"]
    os.utime(tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte", ns=(0, 0))
    TaskDataModule("mnist", **settings).setup("test")
    assert len(list((cache / "mnist").iterdir())) == 3


_RACERS = """
import os, sys, time
from pathlib import Path
from sta_lightning.tasks import TaskDataModule
from sta_lightning.tasks.prepared import PreparedDataset

original = PreparedDataset.pixels
def slow(self, indices):
    os.write(1, b"decodes\\n")
    time.sleep(0.5)
    return original(self, indices)
PreparedDataset.pixels = slow
data = TaskDataModule(sys.argv[1], cache_images=True)
here = Path(sys.argv[2])
child = os.fork()  # what matters are two processes; importing takes long
(here / f"ready-{child == 0}").touch()
while len(list(here.glob("ready-*"))) < 2:
    time.sleep(0.01)
total = sum(float(image.double().sum()) for image, _ in data.dataset("test"))
os.write(1, f"sum {total!r}\\n".encode())
if child:
    os.waitpid(child, 0)
os._exit(0)
"""


def test_two_processes_fill_one_cache(task: Path, cache: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RACERS, str(task), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    plain = module(task, cache_images=False).dataset("test")
    total = sum(float(plain[index][0].double().sum()) for index in range(len(plain)))
    assert sorted(done.stdout.splitlines()) == ["decodes", f"sum {total!r}", f"sum {total!r}"]
    assert len(list((cache / "fruit").iterdir())) == 1
