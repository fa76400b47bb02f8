"""One tensor of one model, read a piece at a time: from memory here, from a file in the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping

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

    __slots__ = ()
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    parts: tuple[TensorSource, ...] = ()

    @abstractmethod
    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """Entries of the flattened tensor, one dimension, in ``dtype``; not to be changed."""

    def read_float32(self, piece: slice, buffer: Tensor) -> Tensor:
        """:meth:`read` in float32, contiguous, for a compiled loop; ``buffer`` may be where."""
        return self.read(piece, torch.float32).contiguous()

    def address(self, piece: slice) -> int | None:
        """Where float32 entries lie in memory for the next seconds, if they do."""
        return None

    def in_file(self, piece: slice) -> tuple[int, int] | None:
        """An open file's number and the byte in it with which float32 entries begin, if any."""
        return None

    def bounds(self) -> tuple[float, float] | None:
        """Smallest and largest entry, if they are known without reading it."""
        return None

    def checks(self) -> Iterator[Callable[[], None]]:
        """What raises a StaError if an open file has changed: equal for all its tensors."""
        for part in self.parts:
            yield from part.checks()

    def check(self) -> None:
        """Raise a StaError if the entries have changed since the source was opened."""
        for check in self.checks():
            check()


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
        # Most tensors are read without an operation but the slice.
        self._plain = self.dtype == torch.float32 and self._flat.is_contiguous()

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """A slice, the tensor's own memory where the type is its own."""
        return self._flat[piece].to(dtype)

    def address(self, piece: slice) -> int | None:
        """In the tensor's own memory, if that is plain float32 on the CPU."""
        plain = self._plain and self.device.type == "cpu"
        return self._flat.data_ptr() + 4 * piece.start if plain else None

    def read_float32(self, piece: slice, buffer: Tensor) -> Tensor:
        """As :meth:`read`."""
        return self._flat[piece] if self._plain else super().read_float32(piece, buffer)


class Held(TensorSource):
    """Entries in float32 that are read once, a piece at a time, and then are in memory.

    Args:
        source: where they come from, on the CPU.
        memory: float32 of as many entries; written.
    """

    dtype = torch.float32

    def __init__(self, source: TensorSource, memory: Tensor) -> None:
        self.parts, self.shape, self._memory = (source,), source.shape, memory
        self._known: set[tuple[int, int]] = set()

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """A slice of the memory."""
        values = self._memory[piece]
        if (piece.start, piece.stop) not in self._known:
            found = self.parts[0].read_float32(piece, values)
            if found is not values:
                values.copy_(found)
            self._known.add((piece.start, piece.stop))
        return values.to(dtype)

    def bounds(self) -> tuple[float, float] | None:
        """What the source knows."""
        return self.parts[0].bounds()


def in_memory(state: StateDict) -> dict[str, TensorSource]:
    """The tensors of a state dict as sources."""
    return {name: MemoryTensor(tensor) for name, tensor in state.items()}


class Derived(TensorSource):
    """Entries computed from those of other sources, in the type of those (float32 at least)."""

    def __init__(self, *parts: TensorSource) -> None:
        self.parts = parts
        self.shape, self.device = parts[0].shape, parts[0].device
        self.dtype = wide_dtype(*(part.dtype for part in parts))


class Zeros(Derived):
    """Zeros in the shape of another source."""

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """Zeros."""
        return torch.zeros(piece.stop - piece.start, dtype=dtype, device=self.device)


class Formula(Derived):
    """Entry by entry what a formula gives of sources of one shape.

    It gets the same piece of each, in its own type (float32 at least), on the first one's device.
    """

    def __init__(self, formula: Callable[..., Tensor], *parts: TensorSource) -> None:
        super().__init__(*parts)
        self._formula = formula

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """The formula's result."""
        device = self.device
        values = (part.read(piece, wide_dtype(part.dtype)).to(device) for part in self.parts)
        return self._formula(*values).to(dtype)
