"""What a merging method is: which passes it needs, and what it does with the entries."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from sta_lightning.arithmetic.entries import Addresses, Block, Entries
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.workers import Processes, Workers, shared_out, together
from sta_lightning.ranges import check_ranges


class Combined(NamedTuple):
    """What a method makes of a block.

    Attributes:
        values: the merged entries, of the shape and type of ``block.base``.
        kept: how many entries of each task's vector were kept, int64 ``[N]``; None for a method
            without a mask.
    """

    values: Tensor
    kept: Tensor | None = None


class Answer(NamedTuple):
    """What a compiled loop says: whether all entries are finite, and how many each task kept."""

    finite: bool
    kept: list[int] | None = None


Data = Literal["nothing", "labelled samples", "unlabelled samples", "unlabelled test images"]
"""What a method needs besides the weights."""

NativeLoop = Callable[[Addresses, Any, int, int], Answer]
"""(addresses, the tensor's state, address of the result, number of entries) -> answer."""


@dataclass(frozen=True)
class Native:
    """A method's loop in machine code, for float32 on the CPU; its bits are those of ``combine``.

    Attributes:
        kernel: gives what is compiled, or ``None``; see :func:`~sta_lightning.kernels.loops`.
        call: runs it: (what ``kernel`` gave, addresses, the tensor's state, address of the result,
            number of entries) -> answer.
        reads_origin: whether it takes task vectors from ``Addresses.origin``. One that takes them
            from the base is used only where that is the origin.
    """

    kernel: Callable[..., Any]
    call: Callable[[Any, Addresses, Any, int, int], Answer]
    reads_origin: bool = False


class Survey:
    """The whole models, for a method that needs to know them before it merges the first tensor."""

    def __init__(self, problem: Problem, workers: Workers, processes: Processes, device: Any = None) -> None:
        self.problem, self.workers, self.processes, self._device = problem, workers, processes, device

    def entries(self, name: str) -> Entries:
        """The tensor of that name of every model."""
        return self.problem.entries(name, self.workers, self._device)

    def each(self, look: Callable[[Entries], Any]) -> dict[str, Any]:
        """What ``look`` finds in every tensor, small and pickled; the processes share them out."""
        names = self.problem.names
        sizes = {name: self.entries(name).numel for name in names}

        def mine() -> dict[str, Any]:
            return {name: look(self.entries(name)) for name in shared_out(sizes, self.processes)}

        found = {n: value for part in together(self.processes, mine) for n, value in part.items()}
        return {name: found[name] for name in names}


class MergeMethod(ABC):
    """A way to merge or to forget: a subclass is a frozen dataclass whose fields are its settings.

    The engine calls ``prepare`` once, then ``prepare_tensor`` for every tensor, then ``combine``
    for every block of it, from several threads. A subclass says what it needs by what it overrides
    and by ``scope``; the engine chooses the passes.

    Attributes:
        title: the method's name in a table.
        summary: what it does, in one line, for ``sta methods``.
        data: what it needs besides the weights.
        coefficient: its setting that has to be tuned, by name; None if it has none.
        source: where it was published.
        scope: ``"position"`` if an entry of the result depends on the entries at that position
            alone (and on what was prepared): then a block is any piece of a tensor. ``"tensor"``
            for a method that needs a whole tensor.
        needs_importance: whether it reads a number for every entry of every task: an importance, a
            Fisher information.
        measure: the importance that it is defined with; None where the user chooses one.
        rereads_scores: whether ``prepare_tensor`` reads all importances of the tensor: they are
            held in memory for ``combine`` where they are not too many.
        needs_grams: whether it reads the Gram matrices of the linear layers' inputs.
        spares: whether a forgetting reads those of a control, which shall not change, too.
        side_by_side: whether tensors may be merged at the same time, each in a thread of its own:
            where ``scope`` is ``"tensor"`` and one takes much work.
        many: whether a forgetting takes several fine-tunings of the task to forget.
        takes_vectors: whether its ``finetuned`` are masked task vectors in place of models.

    Raises:
        StaError: if it is made with a setting that is out of range.
    """

    title: ClassVar[str]
    summary: ClassVar[str] = ""
    data: ClassVar[Data] = "nothing"
    coefficient: ClassVar[str | None] = None
    source: ClassVar[str] = ""
    scope: ClassVar[Literal["position", "tensor"]] = "position"
    needs_importance: ClassVar[bool] = False
    measure: ClassVar[str | None] = None
    rereads_scores: ClassVar[bool] = False
    needs_grams: ClassVar[bool] = False
    spares: ClassVar[bool] = False
    side_by_side: ClassVar[bool] = False
    many: ClassVar[bool] = False
    takes_vectors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse a setting out of its range."""
        check_ranges(self)

    def check(self, problem: Problem) -> None:  # noqa: B027 (most methods take any number of models)
        """Refuse what cannot be merged, before anything is read.

        Raises:
            StaError: says why.
        """

    def prepare(self, survey: Survey) -> Any:
        """Find what depends on whole task vectors; given to ``prepare_tensor``."""
        return None

    def prepare_tensor(self, entries: Entries, prepared: Any) -> Any:
        """Find what depends on one whole tensor; given to ``combine`` for its blocks."""
        return prepared

    @abstractmethod
    def combine(self, block: Block, state: Any) -> Combined:
        """Merge the entries of a block."""

    def native(self, tasks: int) -> Native | None:
        """The same in machine code for that many fine-tuned models, or None."""
        return None

    def settings(self) -> dict[str, Any]:
        """The method's settings by name, for a file's metadata."""
        return dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}


class VectorMethod(MergeMethod):
    """A method that makes one task vector of all of them and adds it to the base: theta + tau."""

    @abstractmethod
    def vector(self, block: Block, state: Any) -> Tensor:
        """The merged task vector of a block, of the shape and type of ``block.base``."""

    def combine(self, block: Block, state: Any) -> Combined:
        """The base plus the merged task vector."""
        return Combined(block.base + self.vector(block, state))
