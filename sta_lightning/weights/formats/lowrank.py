"""A weight and what a low-rank adapter adds to it, computed as it is read."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.sources import Derived, TensorSource, whole
from sta_lightning.errors import StaError


class Adapted(Derived):
    """``W + s·B·A`` (Hu et al. 2021, Eq. 3), with DoRA its rows rescaled (Liu et al. 2024, Eq. 5).

    Args:
        weight: ``W`` ``[out, in]``, of a convolution ``[out, in, …]``; ``[in, out]`` if ``across``.
        a: ``[r, in]``.
        b: ``[out, r]``.
        scale: ``s``.
        magnitude: DoRA's norm of every output's row, ``[out]``.
        across: whether the weight is kept transposed, as by GPT-2 and by embeddings.

    Raises:
        StaError: the shapes do not go together.
    """

    def __init__(
        self,
        weight: TensorSource,
        a: TensorSource,
        b: TensorSource,
        scale: float,
        magnitude: TensorSource | None = None,
        *,
        across: bool = False,
    ) -> None:
        super().__init__(weight, a, b, *(() if magnitude is None else (magnitude,)))
        self._scale, self._across, self._magnitude = scale, across, magnitude
        rows, columns = weight.shape[0] if weight.shape else 0, weight.shape[1:].numel()
        outputs, inputs = (columns, rows) if across else (rows, columns)
        rank = a.shape[0]
        if (a.shape.numel(), b.shape.numel()) != (rank * inputs, outputs * rank) or b.shape[0] != outputs:
            raise StaError(
                f"matrices of shapes {tuple(b.shape)} and {tuple(a.shape)} do not make a change of {tuple(weight.shape)}"
            )
        if magnitude is not None and magnitude.shape.numel() != outputs:
            raise StaError(f"a magnitude of shape {tuple(magnitude.shape)} does not fit {outputs} outputs")
        # Rows of the stored weight come from rows of the one and columns of the other matrix.
        self._columns, self._rank = columns, rank

    @override
    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        first, last = piece.start // self._columns, -(-piece.stop // self._columns)
        rows = self._rows(first, last)
        if self._magnitude is not None:
            ratio = self._ratio
            rows = rows * (ratio if self._across else ratio[first:last, None])
        begin = piece.start - first * self._columns
        return rows.flatten()[begin : begin + piece.stop - piece.start].to(dtype)

    def _rows(self, first: int, last: int) -> Tensor:
        """Rows of the stored weight before DoRA rescales them."""
        weight, a, b = self.parts[:3]
        wide = self.dtype
        held = weight.read(slice(first * self._columns, last * self._columns), wide).view(-1, self._columns)
        if self._across:
            left, right = whole(a, wide)[:, first:last].T, whole(b, wide).T
        else:
            left = b.read(slice(first * self._rank, last * self._rank), wide).view(-1, self._rank)
            right = whole(a, wide).flatten(1)
        return torch.addmm(held, left, right, alpha=self._scale)

    @cached_property
    def _ratio(self) -> Tensor:
        """What DoRA multiplies each output's row by."""
        assert self._magnitude is not None
        norms = self._rows(0, self.shape[0]).norm(dim=0 if self._across else 1)
        found: Tensor = whole(self._magnitude, self.dtype).flatten() / norms
        return found


class Shifted(Derived):
    """A bias and the scaled one of an adapter, one dimension each."""

    def __init__(self, bias: TensorSource, more: TensorSource, scale: float) -> None:
        super().__init__(bias, more)
        self._scale = scale

    @override
    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        bias, more = (part.read(piece, self.dtype) for part in self.parts)
        return torch.add(bias, more, alpha=self._scale).to(dtype)
