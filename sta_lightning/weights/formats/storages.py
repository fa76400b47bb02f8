"""Tensors inside pickled checkpoints, read a piece at a time from where their bytes lie."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sta_lightning.errors import StaError
from sta_lightning.weights.io import fill


class Bytes(Protocol):
    """Something with bytes at offsets: a file, or a part of a pickle."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes from an offset."""

    def check(self) -> None:
        """Raise a StaError if they are no longer what they were."""


class FileBytes:
    """A file that stays open until :meth:`close`.

    Raises:
        StaError: names the file if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise StaError(f"'{path}' cannot be read: {error.strerror}.") from error
        self._opened = os.fstat(self._descriptor)
        self.size = self._opened.st_size

    def __enter__(self) -> FileBytes:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        """The open file's number."""
        return self._descriptor

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the file's bytes from an offset.

        Raises:
            StaError: the file became shorter or cannot be read.
        """
        fill(self._descriptor, buffer, offset, self.path, self.check)

    def check(self) -> None:
        """Whether the file is as long, and as old, as when it was opened.

        Raises:
            StaError: names the file.
        """
        now = os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != (self._opened.st_size, self._opened.st_mtime_ns):
            raise StaError(
                f"'{self.path}' was changed while it was read ({self._opened.st_size} bytes before, {now.st_size} now). "
                "Nothing was written; start again when no other program changes it."
            )


class HeldBytes:
    """Bytes in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Copy some."""
        buffer[:] = self._content[offset : offset + len(buffer)]

    def check(self) -> None:
        """Memory does not change by itself."""


@dataclass
class Shelf:
    """Where the storages of one checkpoint lie.

    Attributes:
        title: what to call the checkpoint in messages.
        content: holds their bytes.
        places: storage's key -> offset and length in bytes; filled while the checkpoint is opened.
    """

    title: str
    content: Bytes
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """A storage that a pickle refers to.

    Attributes:
        shelf: where it lies.
        key: its name there.
        dtype: type of its entries; nothing where it is plain bytes.
        numel: how many entries it has.
        start: how many entries into the keyed storage it begins; other than 0 for views in old
            files.
    """

    shelf: Shelf
    key: str
    dtype: torch.dtype | None
    numel: int
    start: int = 0


class StoredTensor:
    """A tensor of a checkpoint; see :class:`~sta_lightning.arithmetic.sources.TensorSource`.

    Args:
        storage: holds its entries.
        dtype: their type.
        offset: of its first entry, in entries.
        shape: its shape.
        stride: steps along its dimensions, in entries.

    Raises:
        StaError: the storage is missing, or too short for that.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        storage: Storage,
        dtype: torch.dtype,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
    ) -> None:
        self.dtype = dtype
        self._shelf, self._stride = storage.shelf, stride
        place = storage.shelf.places.get(storage.key)
        numbers = (offset, *shape, *stride)
        sound = len(shape) == len(stride) and all(
            isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 60 for n in numbers
        )
        entries = math.prod(shape) if sound else 0
        # The last entry that the strides lead to, plus one. More entries than that would lie on top
        # of each other, as those of an expanded tensor do: a few bytes could ask for all of the
        # memory.
        self._span = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if entries else 0
        if place is None or not sound or entries > self._span:
            raise StaError(
                f"{storage.shelf.title} describes a tensor that cannot be (storage '{storage.key}', offset {offset}, shape "
                f"{shape}, stride {stride}). It may be truncated; copy or make it again."
            )
        self.shape = torch.Size(shape)
        first = (storage.start + offset) * dtype.itemsize
        if first + self._span * dtype.itemsize > place[1]:
            raise StaError(
                f"{storage.shelf.title} has a storage of {place[1]} bytes for a tensor that ends at byte "
                f"{first + self._span * dtype.itemsize}. It may be truncated; copy or make it again."
            )
        self._begin = place[0] + first
        self._entries = entries

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """Entries of the flattened tensor.

        Raises:
            StaError: the file became shorter or cannot be read.
        """
        if not self._contiguous:
            return self._whole[piece].to(dtype)
        return self._bytes(piece.start, piece.stop - piece.start).to(dtype)

    def address(self) -> int | None:
        """Nowhere: the entries are copied out of the file."""
        return None

    def bounds(self) -> tuple[float, float] | None:
        """Not known without reading."""
        return None

    def check(self) -> None:
        """Ask the file."""
        self._shelf.content.check()

    @property
    def _contiguous(self) -> bool:
        expected = 1
        for length, step in zip(reversed(self.shape), reversed(self._stride), strict=True):
            if length != 1 and step != expected:
                return self._entries == 0
            expected *= length
        return True

    @cached_property
    def _whole(self) -> Tensor:
        """The entries in the tensor's own order, where they lie in another one."""
        return self._bytes(0, self._span).as_strided(tuple(self.shape), self._stride).reshape(-1)

    def _bytes(self, start: int, count: int) -> Tensor:
        raw = torch.empty(count * self.dtype.itemsize, dtype=torch.uint8)
        if count:
            self._shelf.content.read_into(raw.numpy().data, self._begin + start * self.dtype.itemsize)
        return raw.view(self.dtype)
