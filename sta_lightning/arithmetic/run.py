"""The passes of a merge, the same in memory and from files, compiled or not, on every device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block, Entries
from sta_lightning.arithmetic.method import Combined, MergeMethod, NativeLoop, Survey
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.states import Statistics, is_finite
from sta_lightning.arithmetic.workers import Alone, Processes, Workers, shared_out, together, usable_threads
from sta_lightning.errors import StaError
from sta_lightning.kernels import Loops, loops

Kept = dict[str, dict[str, float]]
"""Tensor name -> task -> share of the task vector's entries kept, 0 to 1."""


class Sink(Protocol):
    """Where the merged entries go."""

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is kept."""

    def address(self, name: str) -> int | None:
        """Where a tensor's entries belong in this process's memory, if it keeps them as float32."""

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Keep some entries, one dimension, from index ``start`` of the flattened tensor."""


@torch.no_grad()
def run(
    method: MergeMethod,
    problem: Problem,
    sink: Sink,
    *,
    device: torch.device | None = None,
    threads: int | None = None,
    processes: Processes | None = None,
    compiled: bool | None = None,
) -> Kept:
    """Merge every weight, and settle the running statistics.

    Args:
        method: what is done.
        problem: the models.
        sink: where the result goes.
        device: where the arithmetic is done; ``None`` for where each tensor of ``base`` is.
        threads: threads of this process, for arithmetic on the CPU; ``None`` for
            :func:`~sta_lightning.arithmetic.workers.usable_threads`.
        processes: the processes among which the tensors are shared out; every one of them calls
            this. ``None`` for this one alone.
        compiled: whether loops in machine code are used (where a compiler is present); ``None`` for
            where it pays. The result is the same to the last bit.

    Returns:
        The shares kept, of all tensors on every process; empty for a method without a mask.

    Raises:
        StaError: if the models do not match, a setting is out of range, an entry is NaN or
            infinite, or the result overflows its type. The message names the model and the tensor.
    """
    group = Alone() if processes is None else processes
    problem.check_names()
    method.check(problem)
    places = {problem.base[name].device for name in problem.names} if device is None else {device}
    on_cpu = all(place.type == "cpu" for place in places)
    # The method, and for a coefficient of some tensors' own the same with that.
    variants = {
        scale: method if scale is None else replace(method, scale=scale)  # type: ignore[type-var]
        for scale in (None, *problem.scales.values())
    }
    natives = {
        scale: _native(variant, problem, compiled) if on_cpu else (None, None)
        for scale, variant in variants.items()
    }
    looking = natives[None][1]
    with Workers((threads or usable_threads()) if on_cpu else 1, looking) as workers:
        survey = Survey(problem, workers, group, device)
        prepared = method.prepare(survey)
        weights, running = dict.fromkeys(problem.names), _Running(problem.statistics)
        sizes = {name: survey.entries(name).numel for name in (*weights, *problem.running)}

        def merged(name: str) -> dict[str, float]:
            scale = problem.scales.get(name)
            own = (variants[scale], natives[scale][0], prepared)
            found = own if name in weights else (running, None, None)
            return _Tensor(survey.entries(name), sink, problem.tasks, *found).merge()

        def mine() -> Kept:
            names = list(shared_out(sizes, group))
            if not method.side_by_side:
                return {name: merged(name) for name in names}
            return dict(zip(names, workers.map(merged, names, apart=True), strict=True))

        found = {name: kept for part in together(group, mine) for name, kept in part.items()}
    return {name: found[name] for name in problem.names if found[name]}


def _native(
    method: MergeMethod, problem: Problem, compiled: bool | None
) -> tuple[NativeLoop | None, Loops | None]:
    """The method's own loop, and those with which tensors are looked at before."""
    native = method.native(len(problem.finetuned))
    if compiled is False:
        return None, None
    entries = sum(problem.base[name].shape.numel() for name in problem.names)
    work = math.inf if compiled else entries * (len(problem.finetuned) + 1)
    able = native is not None and (native.reads_origin or problem.origin is None)
    kernel = native.kernel(work=work) if native is not None and able else None
    looking = kernel if isinstance(kernel, Loops) else loops(work=work)
    return None if native is None or kernel is None else partial(native.call, kernel), looking


@dataclass(frozen=True)
class _Running(MergeMethod):
    """What running statistics become; of a variance the mean over models, whatever their means."""

    statistics: Statistics

    title = "running statistics"

    @override
    def combine(self, block: Block, state: Any) -> Combined:
        if self.statistics == "pretrained":
            return Combined(block.base)
        return Combined(torch.stack(list(block.finetuned)).mean(0))


class _Tensor:
    """One tensor of a merge."""

    def __init__(
        self,
        entries: Entries,
        sink: Sink,
        tasks: tuple[str, ...],
        method: MergeMethod,
        loop: NativeLoop | None,
        prepared: Any,
    ) -> None:
        self.method, self.sink, self.tasks = method, sink, tasks
        self.dtype = sink.dtype(entries.name)
        self.loop = loop if entries.is_plain else None
        self.entries = entries.holding_scores() if method.rereads_scores else entries
        self.state = method.prepare_tensor(self.entries, prepared)

    def merge(self) -> dict[str, float]:
        """Merge all its blocks and return the shares kept."""
        entries = self.entries
        pieces = entries.pieces(whole=self.method.scope == "tensor")
        work = self._eager if self.loop is None else self._native
        counts = entries.workers.map(work, pieces)
        if not counts and self.method.scope == "position":  # an empty tensor: its share is 0
            none = self.method.combine(entries.block(slice(0, 0)), self.state)
            return {} if none.kept is None else dict.fromkeys(self.tasks, 0.0)
        if not counts or counts[0] is None:
            return {}
        totals = map(sum, zip(*(count for count in counts if count is not None), strict=True))
        return {task: total / entries.numel for task, total in zip(self.tasks, totals, strict=True)}

    def _eager(self, piece: slice) -> list[int] | None:
        whole = self.method.scope == "tensor"
        block = self.entries.block(piece, whole=whole)
        parts = [self.method.combine(part, self.state) for part in ([block] if whole else block.parts())]
        self._write(piece.start, torch.cat([part.values.reshape(-1) for part in parts]))
        kept = [part.kept for part in parts if part.kept is not None]
        return [int(count) for count in torch.stack(kept).sum(0).tolist()] if kept else None

    def _native(self, piece: slice) -> list[int] | None:
        assert self.loop is not None
        entries, size = self.entries, piece.stop - piece.start
        addresses, _held = entries.addresses(piece)  # held until the loop is done
        target = self.sink.address(entries.name)
        if target is None:
            result = entries.workers.buffer(len(entries.sources), size)
            out = result.data_ptr()
        else:
            out = target + 4 * piece.start
        finite, kept = self.loop(addresses, self.state, out, size)
        if not finite:  # NaN or infinity in a source; or finite numbers whose sum, kept or not, overflows
            entries.refuse_infinite()
            return self._eager(piece)
        if target is None:
            self._write(piece.start, result, finite=True)
        return kept

    def _write(self, start: int, values: Tensor, *, finite: bool = False) -> None:
        stored = values.to(self.dtype)
        if (stored.dtype != values.dtype or not finite) and not is_finite(stored):
            raise StaError(
                f"the result overflows {self.dtype} in tensor '{self.entries.name}'. Ask for a wider type, "
                "dtype=torch.float32."
            )
        self.sink.write(self.entries.name, start, stored)
