"""Safetensors files read a piece at a time."""

from __future__ import annotations

import copy
import ctypes
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sta_lightning.arithmetic.sources import TensorSource
from sta_lightning.documents import read_json
from sta_lightning.errors import StaError
from sta_lightning.weights.format import DTYPES, RESERVED
from sta_lightning.weights.opened import OpenFile, PathLike, not_safetensors

_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


class FileTensor(TensorSource):
    """One tensor of a file; see :class:`~sta_lightning.arithmetic.sources.TensorSource`."""

    __slots__ = ("_bounds", "_offset", "dtype", "file", "shape")  # hundreds of files have a hundred each

    def __init__(self, file: TensorFile, shape: torch.Size, dtype: torch.dtype, offset: int) -> None:
        self.file, self.shape, self.dtype, self._offset = file, shape, dtype, offset
        self._bounds: tuple[float, float] | None = None

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """Entries of the flattened tensor, copied out of the file.

        Raises:
            StaError: if the file became shorter or cannot be read.
        """
        count, width = piece.stop - piece.start, self.dtype.itemsize
        raw = torch.empty(count * width, dtype=torch.uint8)
        if count:
            self.file.read_into(raw.numpy().data, self._offset + piece.start * width)
        return raw.view(self.dtype).to(dtype)

    def read_float32(self, piece: slice, buffer: Tensor) -> Tensor:
        """:meth:`read` into the buffer, or a view of the file's map, if the file holds float32."""
        if self.dtype != torch.float32:
            return self.read(piece, torch.float32)
        if not buffer.numel():
            return buffer
        address = self.address(piece)
        if address is not None:
            entries = (ctypes.c_float * buffer.numel()).from_address(address)
            return torch.frombuffer(entries, dtype=torch.float32)
        self.file.read_into(buffer.numpy().data.cast("B"), self._offset + piece.start * 4)
        return buffer

    def address(self, piece: slice) -> int | None:
        """In the file's map, if it holds float32."""
        place = self.file.mapped.address() if self.dtype == torch.float32 else None
        at = self._offset + 4 * piece.start
        return None if place is None or at % 4 else place + at

    def in_file(self, piece: slice) -> tuple[int, int] | None:
        """In this file, if it holds float32."""
        if self.dtype != torch.float32:
            return None
        return self.file.fileno(), self._offset + 4 * piece.start

    def bounds(self) -> tuple[float, float] | None:
        """What the file's metadata says of it, if it was asked."""
        return self._bounds

    def with_bounds(self, bounds: tuple[float, float]) -> FileTensor:
        """The same tensor, of which smallest and largest entry are known."""
        found = copy.copy(self)
        found._bounds = bounds
        return found

    def checks(self) -> Iterator[Callable[[], None]]:
        """Ask the file."""
        yield self.file.check


class TensorFile(OpenFile, Mapping[str, FileTensor]):
    """A safetensors file, open until it is closed; tensor name -> tensor, none of them read yet.

    Raises:
        StaError: names the file if it is missing, truncated, of another format, or says what cannot
            be.
    """

    def __init__(self, path: PathLike) -> None:
        super().__init__(path)
        try:
            self.metadata, self._tensors = self._parse()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> FileTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _parse(self) -> tuple[dict[str, str], dict[str, FileTensor]]:
        try:
            return self._header()
        except StaError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise not_safetensors(self.path, str(error) or type(error).__name__) from error

    def _header(self) -> tuple[dict[str, str], dict[str, FileTensor]]:
        size = self.size
        if size < 8:
            raise ValueError(f"{size} bytes are no header")
        start = bytearray(8)
        self.read_into(memoryview(start), 0)
        length = int.from_bytes(start, "little")
        if length > min(_LONGEST_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        text = bytearray(length)
        if length:
            self.read_into(memoryview(text), 8)
        content: Any = read_json(text.decode("utf-8"), unique=True)
        metadata = content.pop(RESERVED, None) or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is not text")
        tensors: dict[str, FileTensor] = {}
        ends: list[tuple[int, int]] = []
        for name, entry in content.items():
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"tensor '{name}' is of the type {entry['dtype']}, which cannot be merged")
            dtype, (begin, end), shape = DTYPES[entry["dtype"]], entry["data_offsets"], entry["shape"]
            if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
                raise ValueError(f"tensor '{name}' with a size or a place that is no whole number")
            if math.prod(side or 1 for side in shape) >= 1 << 63:
                raise ValueError(f"tensor '{name}' of the shape {tuple(shape)}, which no tensor can have")
            if math.prod(shape) * dtype.itemsize != end - begin:
                raise ValueError(
                    f"tensor '{name}' of shape {tuple(shape)} does not fill its {end - begin} bytes"
                )
            name.encode()  # half a surrogate pair, which JSON can spell, is no text
            ends.append((begin, end))
            tensors[sys.intern(name)] = FileTensor(self, torch.Size(shape), dtype, 8 + length + begin)
        at = 0
        for begin, end in sorted(ends):
            if begin != at:
                raise ValueError("tensors that overlap or leave a gap")
            at = end
        if 8 + length + at != size:
            raise ValueError(f"tensors up to byte {8 + length + at} in a file of {size}")
        return dict(metadata), tensors
