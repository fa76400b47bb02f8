"""The cache of rendered sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sta_lightning.errors import StaWarning
from sta_lightning.tasks.miniature import suite
from sta_lightning.tasks.miniature.scenes import render


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STA_CACHE", str(tmp_path))
    monkeypatch.setattr(suite, "SPLIT_SIZES", {"train": 40, "validation": 20, "test": 30})
    return tmp_path


def test_rendered_once_then_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = suite.MiniatureDataset("digits", "test")
    expected, labels = render("digits", "test", np.arange(30))
    np.testing.assert_array_equal(first.images.numpy(), expected)
    np.testing.assert_array_equal(first.labels.numpy(), labels)
    image, label = first[7]
    np.testing.assert_array_equal(image.numpy(), expected[7])
    assert (label, type(label)) == (7, int)

    def refuse(*args: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(suite, "render", refuse)
    np.testing.assert_array_equal(suite.MiniatureDataset("digits", "test").images.numpy(), expected)


@pytest.mark.parametrize("damage", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_rendered_again(cache: Path, damage: bytes) -> None:
    good = suite.MiniatureDataset("textures", "train").images.clone()
    (file,) = cache.rglob("textures-train-*.npy")
    file.write_bytes(damage)
    np.testing.assert_array_equal(suite.MiniatureDataset("textures", "train").images.numpy(), good.numpy())
    assert np.load(file).shape == (40, 3, 32, 32)


def test_a_cache_that_cannot_be_written_is_said_and_the_images_are_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = cache / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("STA_CACHE", str(blocked))
    with pytest.warns(StaWarning, match=r"could not be kept.*STA_CACHE"):
        found = suite.MiniatureDataset("objects", "validation")
    np.testing.assert_array_equal(found.images.numpy(), render("objects", "validation", np.arange(20))[0])
