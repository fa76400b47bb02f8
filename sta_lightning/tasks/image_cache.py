"""Decoded images on disk, so that evaluating many models decodes a test set once.

One file holds one split of one task as an encoder's input before normalisation: rows of uint8 ``[3,
S, S]`` and a label, read by memory map. Its name ends in a digest of all that decides its bytes, so
that a changed image file makes another cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
import torchvision
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from sta_lightning.cache import cache_directory
from sta_lightning.errors import StaError, StaWarning
from sta_lightning.tasks.loading import workers
from sta_lightning.tasks.prepared import EncoderInput, PreparedDataset
from sta_lightning.tasks.preprocess import Preprocess
from sta_lightning.tasks.task import Split, Task
from sta_lightning.weights.atomic import CannotWriteError, atomic_path

_FORMAT = 2
_CHUNK = 64  # images held in memory while a cache is filled

Rows = npt.NDArray[np.void]


def files_fingerprint(root: Path, names: Iterable[str] = (".",)) -> str:
    """Return a digest of files' names below ``root``, sizes and times of change; none is read.

    ``names`` are files, or folders with all that is below them; where ``root`` lies is no matter.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        for file in _files(root / name):
            status, path = file.stat(), file.relative_to(root).as_posix()
            digest.update(f"{path}:{status.st_size}:{status.st_mtime_ns};".encode())
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, files in os.walk(path, followlinks=True):
        folders.sort()
        yield from (Path(folder) / file for file in sorted(files))


def _cache_file(data: PreparedDataset, task: Task, split: Split, chosen: str, root: str | None) -> Path:
    preprocess = data.preprocess
    content = {
        "format": _FORMAT,
        # Another version of these may decode or resize to other bytes.
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "task": task.name,
        "split": split,
        "chosen": chosen,
        "images": len(data),
        "source": task.fingerprint(split, root),
        "size": preprocess.image_size,
        "interpolation": preprocess.interpolation,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    name = f"{split}-{preprocess.image_size}-{digest[:20]}.npy"
    return cache_directory() / "images" / task.name / name


class CachedDataset(EncoderInput):
    """Images from a cache, ready for an encoder: bit for bit what :class:`PreparedDataset` gives.

    Args:
        path: A file that :func:`cached` has written.
        preprocess: The encoder's preprocessing, whose resizing and cropping have been done.
        length: How many images the file must hold.

    Raises:
        OSError: There is no such file.
        ValueError: It is not whole, or holds something else.
    """

    def __init__(self, path: Path, preprocess: Preprocess, length: int) -> None:
        self.path, self.preprocess, self._length = path, preprocess, length
        self._map: Rows | None = None
        self._rows()

    def __len__(self) -> int:
        return self._length

    @override
    def pixels(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        rows = self._rows()[list(indices)]
        return torch.from_numpy(np.ascontiguousarray(rows["image"])), rows["label"].tolist()

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the file itself; a pickled map would carry the images.
        return {**self.__dict__, "_map": None}

    def _rows(self) -> Rows:
        if self._map is None:
            rows = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if rows.shape != (self._length,) or rows.dtype != _row(self.preprocess.image_size):
                raise ValueError(f"{self.path} holds {rows.shape} of {rows.dtype}")
            self._map = rows
        return self._map


def cached(
    data: PreparedDataset,
    task: Task,
    split: Split,
    chosen: str,
    root: str | None,
    *,
    num_workers: int | None = 0,
) -> CachedDataset | PreparedDataset:
    """Return the images of a data set from its cache, which is filled first if it is not there.

    Several processes may ask at once: one of them decodes, the others wait for it. The file appears
    whole or not at all. Where it cannot be written, a warning says so, and the images are decoded
    each time: they are the same.

    Args:
        data: Images under the evaluation transform.
        task: Whose images they are; they lie below ``root``.
        split: Of which split.
        chosen: Which images of the split, such as a limit.
        root: See ``Task.dataset``.
        num_workers: Processes that decode; ``None`` for some where there are many images.

    Raises:
        StaError: An image does not decode, or the images' files change while they are read.
    """
    path = _cache_file(data, task, split, chosen, root)
    if (found := _opened(path, data)) is not None:
        return found
    with _one_at_a_time(path.parent):
        if (found := _opened(path, data)) is not None:
            return found
        rank_zero_info(f"Decoding the {len(data)} {split} images of '{task.name}' once, into {path}")
        try:
            with atomic_path(path) as temporary:
                _fill(temporary, data, num_workers)
                if _cache_file(data, task, split, chosen, root) != path:
                    raise StaError(
                        f"The files of the {split} images of '{task.name}' changed while they were read. Nothing was "
                        "cached: try again when nothing writes there."
                    )
        except CannotWriteError as error:
            rank_zero_warn(
                f"The {split} images of '{task.name}' could not be kept, and are decoded each time: {error} The folder is "
                "that of STA_CACHE.",
                category=StaWarning,
            )
            return data
    return CachedDataset(path, data.preprocess, len(data))


def _opened(path: Path, data: PreparedDataset) -> CachedDataset | None:
    try:
        return CachedDataset(path, data.preprocess, len(data))
    except (OSError, ValueError, EOFError):
        return None  # not there yet, or not whole: it is made (again)


def _row(size: int) -> np.dtype[np.void]:
    return np.dtype([("image", "u1", (3, size, size)), ("label", "<i8")])


def _fill(path: Path, data: PreparedDataset, num_workers: int | None) -> None:
    """Write the images chunk by chunk; not through a map, so that a full disk is an error."""
    dtype = _row(data.preprocess.image_size)
    chunks = [range(first, min(first + _CHUNK, len(data))) for first in range(0, len(data), _CHUNK)]
    loader = DataLoader(
        _Chunks(data, chunks),
        batch_size=None,
        num_workers=workers(len(chunks)) if num_workers is None else num_workers,
        # Otherwise the pass draws a number from PyTorch's global generator.
        generator=torch.Generator().manual_seed(0),
    )
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (len(data),)}
        np.lib.format.write_array_header_1_0(file, header)
        for pixels, labels in loader:
            rows = np.empty(len(labels), dtype)
            rows["image"], rows["label"] = pixels.numpy(), labels
            file.write(rows.tobytes())


class _Chunks(Dataset[tuple[Tensor, list[int]]]):
    def __init__(self, data: PreparedDataset, chunks: list[range]) -> None:
        self.data, self.chunks = data, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> tuple[Tensor, list[int]]:
        return self.data.pixels(list(self.chunks[index]))


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time into a folder, where the system can; elsewhere all do the work."""
    descriptor = None
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
