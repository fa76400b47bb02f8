"""Tensors made of others as they are read: joined, cut, transposed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from sta_lightning.arithmetic.sources import TensorSource, whole
from sta_lightning.errors import StaError


class _View(TensorSource):
    """What the views share."""

    def __init__(self, parts: Sequence[TensorSource], shape: Sequence[int]) -> None:
        self.parts = tuple(parts)
        self.shape = torch.Size(shape)
        self.dtype = self.parts[0].dtype


class Joined(_View):
    """Tensors one under the other, along the first dimension: query, key and value in one matrix.

    Args:
        parts: of one type, and of one shape but for the first dimension.

    Raises:
        StaError: types or shapes differ.
    """

    def __init__(self, *parts: TensorSource) -> None:
        if len({(part.dtype, tuple(part.shape[1:])) for part in parts}) > 1 or not all(
            len(part.shape) for part in parts
        ):
            found = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in parts)
            raise StaError(f"tensors that belong together differ in type or width: {found}.")
        super().__init__(parts, (sum(part.shape[0] for part in parts), *parts[0].shape[1:]))

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """Entries of the flattened whole, from the parts in which they lie."""
        found: list[Tensor] = []
        begin = 0
        for part in self.parts:
            end = begin + part.shape.numel()
            start, stop = max(piece.start, begin), min(piece.stop, end)
            if start < stop:
                found.append(part.read(slice(start - begin, stop - begin), dtype))
            begin = end
        return torch.cat(found) if found else torch.empty(0, dtype=dtype)


class Rows(_View):
    """Some rows of a tensor, from ``start`` to that before ``stop``."""

    def __init__(self, matrix: TensorSource, start: int, stop: int) -> None:
        super().__init__((matrix,), (stop - start, *matrix.shape[1:]))
        self._offset = start * matrix.shape[1:].numel()

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """Entries of the flattened rows."""
        return self.parts[0].read(slice(piece.start + self._offset, piece.stop + self._offset), dtype)


class Transposed(_View):
    """A matrix with rows and columns exchanged; it is read whole, once.

    Raises:
        StaError: it has not two dimensions.
    """

    def __init__(self, matrix: TensorSource) -> None:
        if len(matrix.shape) != 2:
            raise StaError(f"a projection must be a matrix, and is of shape {tuple(matrix.shape)}.")
        super().__init__((matrix,), (matrix.shape[1], matrix.shape[0]))

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """Entries of the flattened transpose."""
        return self._flat[piece].to(dtype)

    @cached_property
    def _flat(self) -> Tensor:
        return whole(self.parts[0]).t().reshape(-1)
