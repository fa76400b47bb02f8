"""The embedded suite as data sets: rendered once, then read from a cache on disk."""

from __future__ import annotations

import warnings
import zlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sta_lightning.cache import cache_directory
from sta_lightning.errors import StaWarning
from sta_lightning.tasks.miniature.scenes import SCENES, VERSION, render
from sta_lightning.weights.atomic import CannotWriteError, atomic_path

SPLIT_SIZES = {"train": 4000, "validation": 600, "test": 1000}
"""Images in each split of each set."""


def identity(name: str, split: str) -> str:
    """Name what the images of a split follow from: the set's look and the split's size."""
    look = zlib.crc32(repr(SCENES[name].task).encode())
    return f"{name}-{split}-{SPLIT_SIZES[split]}-{look:08x}"


def _cached(name: str, split: str) -> npt.NDArray[np.uint8]:
    size = SPLIT_SIZES[split]
    path = cache_directory() / f"miniature-{VERSION}" / f"{identity(name, split)}.npy"
    try:
        images: npt.NDArray[np.uint8] = np.load(path, mmap_mode="c", allow_pickle=False)
        if images.shape == (size, 3, 32, 32) and images.dtype == np.uint8:
            return images
    except (OSError, ValueError, EOFError):
        pass  # not there yet, or not whole: it is rendered (again) below
    images, _ = render(name, split, np.arange(size))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, images)
    except (OSError, CannotWriteError) as error:
        warnings.warn(
            f"The rendered set could not be kept in {path.parent} ({error}); set STA_CACHE.",
            StaWarning,
            stacklevel=2,
        )
    return images


class MiniatureDataset(Dataset[tuple[Tensor, int]]):
    """One split of one set of the suite.

    Attributes:
        images: Bytes, shape ``[N, 3, 32, 32]``.
        labels: Class indices, shape ``[N]``.
    """

    def __init__(self, name: str, split: str) -> None:
        self.name = name
        self.split = split
        self.images = torch.from_numpy(_cached(name, split))
        self.labels = torch.arange(len(self.images)) % len(SCENES[name].class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])
