"""What a merge works on: the same tensor of every model, and pieces of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from sta_lightning.arithmetic.checks import compare_names, compare_scores
from sta_lightning.arithmetic.sources import Held, MemoryTensor, SourceDict, TensorSource, Zeros
from sta_lightning.arithmetic.sources import whole as whole_tensor
from sta_lightning.arithmetic.states import (
    Statistics,
    bounds,
    cached_size,
    is_finite,
    is_weight,
    piece_size,
    slices,
    wide_dtype,
)
from sta_lightning.arithmetic.workers import Workers
from sta_lightning.errors import StaError, listed, score_line
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
    """The same entries of every model of a :class:`Problem`, the tasks in the order of their names.

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
    """The same tensor of every model of a :class:`Problem`, the tasks in the order of their names.

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
            return source.read(piece, dtype).to(self.device).reshape(shape)

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
        for part in (base, block.origin, *block.finetuned, *block.scores, *block.grams):
            if not is_finite(part):
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
        found = [source.in_file(piece) for source in sources]
        reads = [(*file, address) for file, address in zip(found, places, strict=True) if file is not None]
        loops, held = self.workers.loops, [rows]
        done = bool(reads) and loops is not None and loops.read(reads, 4 * size)
        for number, source in enumerate(sources):
            if found[number] is None or not done:  # of a file that could not be read this tells why
                values = source.read_float32(piece, rows[number * size : (number + 1) * size])
                places[number] = values.data_ptr()
                held.append(values)
        base, *others = places
        origin = base if shared else others.pop(0)
        tasks = len(self.finetuned)
        return Addresses(base, origin, others[:tasks], others[tasks:]), held

    def holding_scores(self) -> Entries:
        """The same, each importance kept in memory once read, if it is narrow and not too large.

        The memory is the calling thread's, and is used again for the next tensor.
        """
        if not self.is_plain or self.numel > HELD:
            return self
        return replace(
            self,
            scores=tuple(
                source
                if isinstance(source, MemoryTensor)
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


@dataclass(frozen=True)
class Problem:
    """The models of a merge.

    Attributes:
        base: the model that is changed: the pretrained one in a fusion, any one in a forgetting.
        finetuned: task name -> fine-tuned model.
        scores: task name -> importance; empty for a method without.
        grams: task name -> Gram matrices ``[in, in]`` by the name of the layer's weight; empty for
            a method without.
        control: the Gram matrices of what a forgetting spares, of the same layers; empty for a
            method without.
        origin: the model that the fine-tuned ones started from; None if it is ``base``.
        base_title: what to call ``base`` in a message.
        origin_title: what to call ``origin`` in a message.
        statistics: what running statistics become, which no method extrapolates: those of ``base``
            (``"pretrained"``), or the mean over the fine-tuned models (``"average"``).
        titles: task name -> what to call the fine-tuned model.
        score_titles: task name -> what to call the importance.
        scales: tensor name -> the method's coefficient there, where it is another than its own.
    """

    base: SourceDict
    finetuned: Mapping[str, SourceDict]
    scores: Mapping[str, SourceDict] = field(default_factory=dict)
    origin: SourceDict | None = None
    grams: Mapping[str, SourceDict] = field(default_factory=dict)
    control: SourceDict = field(default_factory=dict)
    statistics: Statistics = "pretrained"
    base_title: str = "the pretrained model"
    origin_title: str = "the pretrained model"
    titles: Mapping[str, str] = field(default_factory=dict)
    score_titles: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names as they are added up: sorted, so that the order given changes no digit."""
        return tuple(sorted(self.finetuned))

    @property
    def names(self) -> list[str]:
        """The tensors that take part, see :func:`~sta_lightning.arithmetic.states.is_weight`."""
        return [name for name, source in self.base.items() if is_weight(name, source.dtype)]

    @property
    def running(self) -> list[str]:
        """The running statistics of normalisation layers."""
        floating = [name for name, source in self.base.items() if source.dtype.is_floating_point]
        return [name for name in floating if not is_weight(name, self.base[name].dtype)]

    def entries(self, name: str, workers: Workers, device: torch.device | None = None) -> Entries:
        """The tensor of that name of every model; ``device`` is None for that of ``base``."""
        base = self.base[name]
        tasks = self.tasks
        scored = tasks if self.scores and is_weight(name, base.dtype) else ()
        grams = [found[name] for found in self._measured.values() if name in found]
        return Entries(
            name=name,
            base=base,
            origin=base if self.origin is None else self.origin[name],
            finetuned=tuple(self.finetuned[task][name] for task in tasks),
            scores=tuple(self.scores[task][name] for task in scored),
            titles=(
                self.base_title,
                self.origin_title,
                *(self._title(task) for task in tasks),
                *(self._score_title(task) for task in scored),
            ),
            workers=workers,
            device=device or base.device,
            grams=tuple(grams) if len(grams) == len(self._measured) else (),
        )

    @property
    def _measured(self) -> dict[str, SourceDict]:
        """The Gram matrices by whose they are: the tasks' in order, and then the control's."""
        found = {f"task '{task}'": self.grams[task] for task in self.tasks if self.grams}
        return {**found, "the control": self.control} if self.control else found

    def _title(self, task: str) -> str:
        return self.titles.get(task, f"the model fine-tuned on '{task}'")

    def _score_title(self, task: str) -> str:
        return self.score_titles.get(task, f"the importance of task '{task}'")

    def of_vectors(self, vector: Callable[[str, str, TensorSource, TensorSource], TensorSource]) -> Problem:
        """The same merge of other task vectors.

        The fine-tuned models' place is taken by the task vectors themselves, and the origin's by
        zeros, so that nothing is rounded on the way.

        Args:
            vector: (task, the weight's name, fine-tuned, origin) -> the task vector.
        """
        reference = self.base if self.origin is None else self.origin
        return replace(
            self,
            origin={
                name: Zeros(source) if is_weight(name, source.dtype) else source
                for name, source in reference.items()
            },
            finetuned={
                task: {
                    name: vector(task, name, source, reference[name])
                    if is_weight(name, source.dtype) and name in reference
                    else source
                    for name, source in model.items()
                }
                for task, model in self.finetuned.items()
            },
        )

    def check_names(self) -> None:
        """Whether all models have the same tensors, with the same shapes and kinds.

        Raises:
            StaError: names the model and the tensors that are missing, unknown, of another shape or
                of another kind.
        """
        others = {self._title(task): model for task, model in self.finetuned.items()}
        reference, title = self.base, self.base_title
        if self.origin is not None:
            reference, title = self.origin, self.origin_title
            others = {self.base_title: self.base, **others}
        for name, model in others.items():
            compare_names(reference, model, reference_name=title, other_name=name)
        for task, scores in self.scores.items():
            compare_scores(self.base, scores, self._score_title(task))

    def check_grams(self, title: str) -> None:
        """Whether every task has Gram matrices of the same layers, which method ``title`` needs.

        Raises:
            StaError: names the task and the tensor.
        """
        without = [task for task in self.tasks if not self.grams.get(task)]
        if without:
            raise StaError(
                f"{title} needs the Gram matrices of every task; there are none for {listed(without)}. Collect them: "
                f"{score_line('gram')}."
            )
        measured = self._measured
        for whose, found in measured.items():
            if unknown := sorted(set(found) - set(self.names)):
                raise StaError(
                    f"the Gram matrices of {whose} are those of another model: it has no weights {listed(unknown)}. "
                    "Collect them of the image encoder that is merged."
                )
        every: set[str] = set().union(*measured.values())
        for whose, found in measured.items():
            if missing := sorted(every - set(found)):
                raise StaError(
                    f"{whose} has no Gram matrix for {listed(missing)}, and others have. Collect them of the same layers "
                    "for all."
                )
        for name in sorted(every):
            shape = list(self.base[name].shape)
            square = [shape[1]] * 2 if len(shape) == 2 else None
            wanted = f"it must be {square}" if square else "a linear layer's weight has two dimensions"
            for whose, found in measured.items():
                has = list(found[name].shape)
                if has != square:
                    raise StaError(
                        f"the Gram matrix of {whose} for tensor '{name}', {shape}, has the shape {has}; {wanted}."
                    )
