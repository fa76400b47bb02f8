"""Tensors inside pickled checkpoints, read a piece at a time from where their bytes lie."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sta_lightning.arithmetic.sources import SourceDict, TensorSource
from sta_lightning.errors import StaError
from sta_lightning.weights.formats.admission import STORAGES
from sta_lightning.weights.formats.pickled import Global
from sta_lightning.weights.opened import OpenFile

_MOST_DIMENSIONS = 64  # torch's own limit


class HeldBytes:
    """Bytes in memory, with what is asked of an open file."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Copy some."""
        buffer[:] = self._content[offset : offset + len(buffer)]

    def check(self) -> None:
        """Memory does not change by itself."""


@dataclass
class Storages:
    """Where the storages of one checkpoint lie.

    Attributes:
        title: what to call the checkpoint in messages.
        content: holds their bytes.
        places: storage's key -> offset and length in bytes; filled while the checkpoint is opened.
    """

    title: str
    content: OpenFile | HeldBytes
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """A storage that a pickle refers to.

    Attributes:
        among: where it lies.
        key: its name there.
        dtype: type of its entries; ``None`` where it is plain bytes.
        start: of its first entry in the keyed storage, in entries; 0 but for views in old files.
    """

    among: Storages
    key: str
    dtype: torch.dtype | None
    start: int = 0


def storage_dtype(kind: Any, title: str) -> torch.dtype | None:
    """The type of a storage's entries by its class; ``None`` for plain bytes.

    Raises:
        StaError: no such class can be read (complex or quantised ones).
    """
    if not isinstance(kind, Global):
        raise ValueError("a storage of what is no class")
    name = kind.name if kind.module in ("torch", "torch.storage") else str(kind)
    if name == "UntypedStorage":
        return None
    if name not in STORAGES:
        raise StaError(
            f"{title} holds a tensor in a '{name}', which cannot be read. Convert it to a dense real tensor first."
        )
    found: torch.dtype = getattr(torch, STORAGES[name])
    return found


class StoredTensor(TensorSource):
    """A tensor of a checkpoint; see :class:`~sta_lightning.arithmetic.sources.TensorSource`.

    Args:
        storage: holds its entries.
        dtype: their type.
        offset: of its first entry, in entries.
        shape: its shape.
        stride: steps along its dimensions, in entries.

    Attributes:
        place: where its entries lie: equal for two names of one tensor.

    Raises:
        StaError: the storage is missing, or too short for that.
        ValueError: what should be a number is none.
    """

    def __init__(self, storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> None:
        self.dtype = dtype
        self._among, self._stride = storage.among, stride
        if not len(shape) == len(stride) <= _MOST_DIMENSIONS or not all(
            type(n) is int and 0 <= n < 1 << 60 for n in (offset, *shape, *stride)
        ):
            raise ValueError("sizes that are no numbers")
        self._entries: int = math.prod(shape)
        # The last entry that the strides lead to, plus one. More entries would lie on top of each
        # other, as those of an expanded tensor do: a few bytes could ask for all of the memory.
        last = sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        self._span = 1 + last if self._entries else 0
        begin, length = storage.among.places.get(storage.key, (0, -1))
        if length < 0 or self._entries > self._span:
            raise StaError(
                f"{storage.among.title} describes a tensor that cannot be (storage '{storage.key}', offset {offset}, shape "
                f"{tuple(shape)}, stride {tuple(stride)}). It may be truncated; copy or make it again."
            )
        self.shape = torch.Size(shape)
        first = (storage.start + offset) * dtype.itemsize
        if first + self._span * dtype.itemsize > length:
            raise StaError(
                f"{storage.among.title} has a storage of {length} bytes for a tensor that ends at byte "
                f"{first + self._span * dtype.itemsize}. It may be truncated; copy or make it again."
            )
        self._begin = begin + first
        self.place = (id(self._among), self._begin, dtype, tuple(shape), tuple(stride))

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """Entries of the flattened tensor.

        Raises:
            StaError: the file became shorter or cannot be read.
        """
        if self._entries and not torch.empty_strided(self.shape, self._stride, device="meta").is_contiguous():
            return self._whole[piece].to(dtype)
        return self._bytes(piece.start, piece.stop - piece.start).to(dtype)

    def checks(self) -> Iterator[Callable[[], None]]:
        """Ask the file."""
        yield self._among.content.check

    @cached_property
    def _whole(self) -> Tensor:
        """The entries in the tensor's own order, where they lie in another one."""
        return self._bytes(0, self._span).as_strided(tuple(self.shape), tuple(self._stride)).reshape(-1)

    def _bytes(self, start: int, count: int) -> Tensor:
        raw = torch.empty(count * self.dtype.itemsize, dtype=torch.uint8)
        if count:
            self._among.content.read_into(raw.numpy().data, self._begin + start * self.dtype.itemsize)
        return raw.view(self.dtype)


def shared_names(tensors: SourceDict, known: Collection[str] = ()) -> dict[str, str]:
    """The further names of tensors that a pickled checkpoint holds once under several.

    So it holds the table of a language model's embeddings that is its last layer's too.

    Args:
        tensors: of one checkpoint.
        known: names that are wanted, and no further ones.

    Returns:
        Further name -> the first of ``known`` that the tensor has, or else its first.
    """
    groups: dict[object, list[str]] = defaultdict(list)
    for name, source in tensors.items():
        if isinstance(source, StoredTensor) and source.shape.numel():
            groups[source.place].append(name)
    found: dict[str, str] = {}
    for names in groups.values():
        kept = next((name for name in names if name in known), names[0])
        found |= {name: kept for name in names if name != kept and name not in known}
    return found
