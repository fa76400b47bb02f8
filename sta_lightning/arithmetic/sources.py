"""One tensor of one model, read a piece at a time: from memory here, from a file in the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from sta_lightning.arithmetic.states import StateDict, wide_dtype


class TensorSource(ABC):
    """Where the entries of one tensor come from.

    Attributes:
        shape: of the tensor.
        dtype: the type in which its entries are kept.
        device: where they are.
        parts: the sources that they are made of, if any.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    parts: tuple[TensorSource, ...] = ()

    @abstractmethod
    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """Entries of the flattened tensor, one dimension, in ``dtype``; not to be changed."""

    def read_float32(self, piece: slice, buffer: Tensor) -> Tensor:
        """:meth:`read` in float32, the entries one after another, for a compiled loop.

        Args:
            piece: which entries.
            buffer: float32 of that size on the CPU, where they may be put.
        """
        return self.read(piece, torch.float32).contiguous()

    def bounds(self) -> tuple[float, float] | None:
        """Smallest and largest entry, if they are known without reading it."""
        return None

    def check(self) -> None:
        """Raise a StaError if the entries are no longer what they were when the source was opened."""
        for part in self.parts:
            part.check()


SourceDict = Mapping[str, TensorSource]
"""Tensor name -> source."""


def whole(source: TensorSource, dtype: torch.dtype | None = None) -> Tensor:
    """A whole tensor, in its shape and its own type or ``dtype``."""
    entries = source.read(slice(0, source.shape.numel()), dtype or source.dtype)
    return entries.reshape(tuple(source.shape))


class MemoryTensor(TensorSource):
    """A tensor in memory, on any device."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        self._flat = self.tensor.resolve_neg().reshape(-1)

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """A slice, the tensor's own memory where the type is its own."""
        return self._flat[piece].to(dtype)


def in_memory(state: StateDict) -> dict[str, TensorSource]:
    """The tensors of a state dict as sources."""
    return {name: MemoryTensor(tensor) for name, tensor in state.items()}


class Derived(TensorSource):
    """Entries computed from those of other sources, in the type of those (float32 at least)."""

    def __init__(self, *parts: TensorSource) -> None:
        self.parts = parts
        self.shape, self.device = parts[0].shape, parts[0].device
        self.dtype = wide_dtype(*(part.dtype for part in parts))


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
