"""The same tensor of every model, and pieces of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from sta_lightning.arithmetic.sources import Held, MemoryTensor, TensorSource
from sta_lightning.arithmetic.sources import whole as whole_tensor
from sta_lightning.arithmetic.states import (
    bounds,
    cached_size,
    is_finite,
    moved,
    piece_size,
    slices,
    wide_dtype,
)
from sta_lightning.arithmetic.workers import Workers
from sta_lightning.errors import StaError
from sta_lightning.kernels import Loops

Result = TypeVar("Result")

HELD = 1 << 22  # entries of a tensor that are kept in memory for a second look: 16 MB
_NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})


class Addresses(NamedTuple):
    """Where the float32 entries of one piece lie."""

    base: int
    origin: int
    finetuned: list[int]
    scores: list[int]

    def moved(self, count: int, tasks: slice = slice(None)) -> Addresses:
        """Those of the entries from the ``count``-th on, of some tasks."""
        at = 4 * count
        models = ([place + at for place in places[tasks]] for places in (self.finetuned, self.scores))
        return Addresses(self.base + at, self.origin + at, *models)


@dataclass(frozen=True)
class Block:
    """The same entries of every model of a merge, the tasks in the order of their names.

    Attributes:
        name: the tensor's name.
        start: index of the first entry in the flattened tensor.
        base: one dimension, or the tensor's own shape for a method whose scope is a whole tensor.
            All weights of a block have one type, float32, or float64 if one of the models is so.
        origin: of the same shape; in a fusion it is ``base``.
        finetuned: of the same shape, one for each task.
        scores: likewise, float32 or float64; empty for a method without.
        grams: one ``[in, in]`` for each task, and behind them the control's if there is one, for a
            method that reads them and a tensor that has them.
    """

    name: str
    start: int
    base: Tensor
    origin: Tensor
    finetuned: Sequence[Tensor]
    scores: Sequence[Tensor]
    grams: Sequence[Tensor] = ()

    def deltas(self) -> Iterator[Tensor]:
        """The task vectors (Eq. 7), one at a time."""
        for finetuned in self.finetuned:
            yield finetuned - self.origin

    def parts(self) -> Iterator[Block]:
        """The block, of one dimension, in parts whose temporaries stay in a core's cache."""
        models = 2 + len(self.finetuned) + len(self.scores)
        size, count = cached_size(self.base.device, models), self.base.numel()
        if count <= size:
            yield self
            return
        for at in range(0, count, size):
            cut = slice(at, at + size)
            base = self.base[cut]
            yield replace(
                self,
                start=self.start + at,
                base=base,
                origin=base if self.origin is self.base else self.origin[cut],
                finetuned=[values[cut] for values in self.finetuned],
                scores=[values[cut] for values in self.scores],
            )

    @property
    def piece(self) -> slice:
        """Which entries of the flattened tensor these are."""
        return slice(self.start, self.start + self.base.numel())


@dataclass(frozen=True)
class Entries:
    """The same tensor of every model of a merge, the tasks in the order of their names.

    Attributes:
        titles: what to call each in a message, in the order base, origin, finetuned, scores.
        workers: the threads that work on it.
        device: where the arithmetic is done.
    """

    name: str
    base: TensorSource
    origin: TensorSource
    finetuned: tuple[TensorSource, ...]
    scores: tuple[TensorSource, ...]
    titles: tuple[str, ...]
    workers: Workers
    device: torch.device
    grams: tuple[TensorSource, ...] = ()

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        return self.base.shape

    @property
    def numel(self) -> int:
        """How many entries it has."""
        return math.prod(self.base.shape)

    @property
    def work(self) -> torch.dtype:
        """The type in which the weights are added up."""
        return wide_dtype(self.base.dtype, self.origin.dtype, *(source.dtype for source in self.finetuned))

    @property
    def sources(self) -> tuple[TensorSource, ...]:
        """All of them, in the order of ``titles``."""
        return (self.base, self.origin, *self.finetuned, *self.scores)

    def pieces(self, *, whole: bool = False) -> list[slice]:
        """Consecutive slices that cover the flattened tensor; one if ``whole``."""
        step = self.numel or 1 if whole else piece_size(self.device, len(self.sources))
        return list(slices(self.numel, step))

    def blocks(self, *, whole: bool = False) -> Iterator[Block]:
        """The tensor in pieces, one after another; see :meth:`block`."""
        for piece in self.pieces(whole=whole):
            yield self.block(piece, whole=whole)

    def look(self, find: Callable[[Block], Result], *, whole: bool = False) -> list[Result]:
        """What ``find`` finds in every block, the workers sharing them."""
        return self.workers.map(lambda piece: find(self.block(piece, whole=whole)), self.pieces(whole=whole))

    @property
    def loops(self) -> Loops | None:
        """The compiled loops, where they can take all sources."""
        return self.workers.loops if self.is_plain else None

    def block(self, piece: slice, *, whole: bool = False) -> Block:
        """Read a piece of every model; if ``whole``, all of it, in the tensor's own shape.

        Raises:
            StaError: if an entry is NaN or infinite.
        """
        shape = self.shape if whole else (-1,)

        def entries(source: TensorSource, dtype: torch.dtype) -> Tensor:
            return moved(source.read(piece, dtype), self.device).reshape(shape)

        base = entries(self.base, self.work)
        grams = self.grams if whole else ()
        block = Block(
            name=self.name,
            start=piece.start,
            base=base,
            origin=base if self.origin is self.base else entries(self.origin, self.work),
            finetuned=[entries(source, self.work) for source in self.finetuned],
            scores=[entries(source, wide_dtype(source.dtype)) for source in self.scores],
            grams=[whole_tensor(gram, wide_dtype(gram.dtype)).to(self.device) for gram in grams],
        )
        if not is_finite(base, block.origin, *block.finetuned, *block.scores, *block.grams):
            self.refuse_infinite()
        return block

    @property
    def is_plain(self) -> bool:
        """Whether compiled loops can take it: on the CPU, exact in float32, as 16-bit types are."""
        places = (self.device, *(source.device for source in self.sources))
        narrow = all(source.dtype in _NARROW for source in self.sources)
        return narrow and all(place.type == "cpu" for place in places)

    def addresses(self, piece: slice) -> tuple[Addresses, list[Tensor]]:
        """A piece of every model for a compiled loop, and what has to live until it is done.

        The memory is the calling thread's, and is used again for its next piece.
        """
        size, shared = piece.stop - piece.start, self.origin is self.base
        sources = (self.base, *self.sources[2:]) if shared else self.sources
        rows = self.workers.buffer(0, len(sources) * size)
        places = [rows.data_ptr() + 4 * size * number for number in range(len(sources))]
        absent: dict[int, tuple[int, int] | None] = {}
        for number, source in enumerate(sources):
            address = source.address(piece)
            if address is None:
                absent[number] = source.in_file(piece)
            else:
                places[number] = address
        reads = [(*file, places[number]) for number, file in absent.items() if file is not None]
        loops, held = self.workers.loops, [rows]
        done = bool(reads) and loops is not None and loops.read(reads, 4 * size)
        for number, file in absent.items():
            if file is None or not done:  # of a file that could not be read this tells why
                values = sources[number].read_float32(piece, rows[number * size : (number + 1) * size])
                places[number] = values.data_ptr()
                held.append(values)
        base, *others = places
        origin = base if shared else others.pop(0)
        tasks = len(self.finetuned)
        return Addresses(base, origin, others[:tasks], others[tasks:]), held

    def holding_scores(self) -> Entries:
        """The same, each importance kept in memory once read, if it is narrow and not too large.

        One that lies there already stays where it is.

        The memory is the calling thread's, and is used again for the next tensor.
        """
        if not self.is_plain or self.numel > HELD:
            return self
        return replace(
            self,
            scores=tuple(
                source
                if isinstance(source, MemoryTensor)
                or (self.workers.loops is not None and source.address(slice(0, 0)) is not None)
                else Held(source, self.workers.buffer(-1 - number, self.numel))
                for number, source in enumerate(self.scores)
            ),
        )

    def bounds(self, source: TensorSource) -> tuple[float, float]:
        """Smallest and largest entry of one of the sources: known beforehand, or found now.

        Raises:
            StaError: if an entry is NaN or infinite.
        """
        found = source.bounds()
        if found is not None or not self.numel:
            return found or (0.0, 0.0)

        def look(values: Tensor, loops: Loops | None) -> tuple[float, float]:
            return bounds(values) if loops is None else loops.bounds(values.data_ptr(), values.numel())

        parts = self.over(source, look)
        if not all(math.isfinite(bound) for part in parts for bound in part):
            self.refuse_infinite()
        return min(low for low, _ in parts), max(high for _, high in parts)

    def over(self, source: TensorSource, look: Callable[[Tensor, Loops | None], Result]) -> list[Result]:
        """What ``look`` finds in every piece of one of the sources.

        It gets the entries, one dimension, and the loops that may read them, or ``None``.
        """
        dtype = wide_dtype(source.dtype)
        native = dtype == torch.float32 and source.device.type == "cpu"
        loops = self.workers.loops if native else None

        def one(piece: slice) -> Result:
            if loops is None:
                return look(source.read(piece, dtype), None)
            buffer = self.workers.buffer(0, piece.stop - piece.start)
            return look(source.read_float32(piece, buffer), loops)

        return self.workers.map(one, self.pieces())

    def refuse_infinite(self) -> None:
        """Look at every entry of every source.

        Raises:
            StaError: names the model and the tensor of which an entry is NaN or infinite.
        """
        for source, title in zip(self.sources, self.titles, strict=True):
            source.check()
            dtype = wide_dtype(source.dtype)
            for piece in self.pieces():
                if not is_finite(source.read(piece, dtype)):
                    raise StaError(
                        f"{title} holds NaN or Inf in tensor '{self.name}'. Nothing can be computed from it; train, score "
                        "or export it again."
                    )
        for source in self.grams:
            source.check()
            if not is_finite(whole_tensor(source)):
                raise StaError(
                    f"a Gram matrix of tensor '{self.name}' holds NaN or Inf. Collect the Gram matrices again."
                )
