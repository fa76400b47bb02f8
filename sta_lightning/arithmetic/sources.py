"""One tensor of one model, read a piece at a time: from memory here, from a file in the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from sta_lightning.arithmetic.states import StateDict, wide_dtype


class TensorSource(Protocol):
    """Where the entries of one tensor come from."""

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""

    @property
    def dtype(self) -> torch.dtype:
        """The type in which its entries are kept."""

    @property
    def device(self) -> torch.device:
        """Where its entries are."""

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """Entries of the flattened tensor, one dimension, in ``dtype``; not to be changed."""

    def address(self) -> int | None:
        """Where its entries lie in this process's memory, if they lie there one after another as float32."""

    def bounds(self) -> tuple[float, float] | None:
        """Smallest and largest entry, if they are known without reading it."""

    def check(self) -> None:
        """Raise a StaError if the entries are no longer what they were when the source was opened."""


SourceDict = Mapping[str, TensorSource]
"""Tensor name -> source."""


def whole(source: TensorSource, dtype: torch.dtype | None = None) -> Tensor:
    """A whole tensor, in its shape and its own type or ``dtype``."""
    entries = source.read(slice(0, source.shape.numel()), dtype or source.dtype)
    return entries.reshape(tuple(source.shape))


class CopiedSource:
    """What sources share whose entries are copied or computed as they are read.

    Attributes:
        parts: the sources that they are made of, if any.
    """

    parts: tuple[TensorSource, ...] = ()

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def address(self) -> int | None:
        """Nowhere: the entries do not lie in memory one after another."""
        return None

    def bounds(self) -> tuple[float, float] | None:
        """Not known without reading."""
        return None

    def check(self) -> None:
        """Ask the parts."""
        for part in self.parts:
            part.check()


class MemoryTensor(CopiedSource):
    """A tensor in memory, on any device."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self._flat = self.tensor.reshape(-1)

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's type."""
        return self.tensor.dtype

    @property
    def device(self) -> torch.device:
        """The tensor's device."""
        return self.tensor.device

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """A slice, the tensor's own memory where the type is its own."""
        return self._flat[piece].to(dtype)

    def address(self) -> int | None:
        """The tensor's memory, if it is contiguous float32 on the CPU."""
        flat = self._flat
        plain = flat.dtype == torch.float32 and flat.device.type == "cpu" and not flat.is_neg()
        return flat.data_ptr() if plain and flat.is_contiguous() else None


def in_memory(state: StateDict) -> dict[str, TensorSource]:
    """The tensors of a state dict as sources."""
    return {name: MemoryTensor(tensor) for name, tensor in state.items()}


class Derived(CopiedSource):
    """Entries computed from those of other sources, in the type of those (float32 at least)."""

    def __init__(self, *parts: TensorSource) -> None:
        self.parts = parts
        self.dtype = wide_dtype(*(part.dtype for part in parts))

    @property
    def shape(self) -> torch.Size:
        """The shape of the parts."""
        return self.parts[0].shape

    @property
    def device(self) -> torch.device:
        """The device of the first part."""
        return self.parts[0].device


class Squared(Derived):
    """Amp: the square of every weight (Eq. 21)."""

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """The squares."""
        return self.parts[0].read(piece, self.dtype).square().to(dtype)


class Weighted(Derived):
    """LP+Amp: a score times the square of the weight (Eq. 22); parts: scores, weights."""

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """The products."""
        scores, weights = self.parts
        square = weights.read(piece, wide_dtype(weights.dtype)).square()
        return (scores.read(piece, wide_dtype(scores.dtype)).to(square.device) * square).to(dtype)


class SquaredDelta(Derived):
    """The square of every entry of a task vector; parts: fine-tuned, pretrained."""

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """The squares."""
        finetuned, base = (part.read(piece, self.dtype) for part in self.parts)
        return (finetuned.to(base.device) - base).square().to(dtype)
