"""TIES: trim every task vector, elect a sign for every position, merge what agrees with it.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Addresses, Block, Entries
from sta_lightning.arithmetic.memory import check_models
from sta_lightning.arithmetic.method import Answer, Native, Survey, VectorMethod
from sta_lightning.arithmetic.order import magnitude_statistics, size_of, work_dtype
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.arithmetic.states import StateDict, to_double
from sta_lightning.arithmetic.workers import Alone, Workers
from sta_lightning.kernels import Loops, loops
from sta_lightning.ranges import finite, number, word

TiesMerge = Literal["mean", "sum"]


@dataclass(frozen=True)
class Trimming:
    """What TIES has to know of the whole models.

    Attributes:
        thresholds: for each task the magnitude from which on an entry is kept, shape ``[]``.
        majority: the sign of positions at which the kept entries add up to zero: -1, 0 or 1.
    """

    thresholds: Sequence[Tensor]
    majority: int = 0

    @cached_property
    def narrow(self) -> list[float]:
        """The thresholds as the smallest float32 that are not below them: they keep the same."""
        found = []
        for threshold in self.thresholds:
            near = threshold.to(torch.float32)
            above = near if near >= threshold else near.nextafter(torch.tensor(math.inf, device="cpu"))
            found.append(float(above))
        return found


@dataclass(frozen=True)
class Ties(VectorMethod):
    """TIES: theta_0 + scale * the mean (or sum) of the kept entries that have the elected sign.

    Args:
        keep: share of every task vector's entries that is kept, the largest in magnitude over all
            tensors together; in (0, 1]. Of d entries those are kept that are at least as large as
            the k-th smallest, k = d - floor(d * ``keep``): without ties one more than floor(d *
            ``keep``), and all that tie with the last one kept.
        merge: ``"mean"`` divides the sum at every position by the number of tasks that contribute
            to it, ``"sum"`` does not.
        scale: the coefficient lambda; the STA paper's baseline uses 0.4.
    """

    keep: float = number(
        0.2, "(0, 1]", "TIES keeps a share of the entries: keep", "The authors' k = 20 percent is 0.2."
    )
    merge: TiesMerge = word("mean", TiesMerge)
    scale: float = finite(0.4)

    title = "TIES"
    summary = "the largest entries of every task vector, where they agree in sign with the majority"
    coefficient = "scale"
    source = "Yadav et al. 2023"

    @override
    def prepare(self, survey: Survey) -> Trimming:
        """The thresholds of the tasks, and the sign that most positions elect."""
        tasks, size = len(survey.problem.tasks), size_of(survey)
        k = size - int(size * self.keep)
        if k:
            thresholds = [threshold for (threshold,) in magnitude_statistics(survey, [[k]] * tasks)]
        else:  # everything is kept, or there is nothing
            thresholds = [torch.zeros((), dtype=work_dtype(survey), device="cpu")] * tasks
        found = Trimming(thresholds)

        def eager(block: Block) -> int:
            return int(_signs(_trimmed(block, found)).sum(dtype=torch.int64))

        def look(entries: Entries) -> int:
            loops = entries.loops
            if loops is None:
                return sum(entries.look(eager))

            def native(piece: slice) -> int:
                at, _held = entries.addresses(piece)
                return loops.elect(at.origin, at.finetuned, found.narrow, piece.stop - piece.start)

            return sum(entries.workers.map(native, entries.pieces()))

        elected = sum(survey.each(look).values())
        return Trimming(thresholds, (elected > 0) - (elected < 0))

    @override
    def native(self, tasks: int) -> Native | None:
        def call(kernel: Loops, at: Addresses, state: Trimming, out: int, size: int) -> Answer:
            mean = self.merge == "mean"
            models = at.base, at.origin, at.finetuned
            return Answer(kernel.ties(*models, state.narrow, state.majority, mean, self.scale, out, size))

        return Native(loops, call, reads_origin=True)

    @override
    def vector(self, block: Block, state: Trimming) -> Tensor:
        total, count = torch.zeros_like(block.base), torch.zeros_like(block.base)
        for part in agreeing(block, state):
            total += part
            count += part != 0
        return self.scale * (total / count.clamp(min=1) if self.merge == "mean" else total)


def agreeing(block: Block, state: Trimming) -> list[Tensor]:
    """Each task's vector where it is kept and has the elected sign, and zero elsewhere."""
    kept = _trimmed(block, state)
    sign = _signs(kept)
    sign = torch.where(sign == 0, float(state.majority), sign)
    return [torch.where(part * sign > 0, part, 0.0) for part in kept]


def _trimmed(block: Block, state: Trimming) -> list[Tensor]:
    """Each task's vector where it is kept, and zero elsewhere."""
    return [
        # In the threshold's type: rounding the threshold to float32 would move it past entries.
        torch.where(delta.abs().to(threshold.dtype) >= threshold.to(delta.device), delta, 0.0)
        for delta, threshold in zip(block.deltas(), state.thresholds, strict=True)
    ]


def _signs(kept: Sequence[Tensor]) -> Tensor:
    """The sign of the sum at every position; summed in float64, so that rounding elects nothing."""
    total = to_double(kept[0]).clone()
    for part in kept[1:]:
        total += to_double(part)
    return total.sign().to(kept[0])


@torch.no_grad()
def ties_vectors(
    pretrained: StateDict, finetuned: Mapping[str, StateDict], *, keep: float = 0.2
) -> dict[str, dict[str, Tensor]]:
    """Each task's vector after trimming, without the entries that disagree with the elected sign.

    Their sum is what :class:`Ties` adds with ``merge="sum"``; AdaMerging++ learns coefficients of
    them.

    Args:
        pretrained: tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes, one or more.
        keep: share of every task vector's entries that is kept, in (0, 1].

    Returns:
        Task name -> tensor name -> tensor of that shape, for the floating-point names; float32, or
        float64 where one of the models is so.

    Raises:
        StaError: if ``keep`` is out of range, there is no task, models do not match, or an entry is
            not finite.
    """
    method = Ties(keep)
    check_models(pretrained, finetuned)
    problem = Problem(in_memory(pretrained), {task: in_memory(model) for task, model in finetuned.items()})
    vectors: dict[str, dict[str, Tensor]] = {task: {} for task in finetuned}
    with Workers() as workers:
        survey = Survey(problem, workers, Alone())
        state = method.prepare(survey)
        for name in problem.names:
            entries = survey.entries(name)
            flat = {
                task: torch.empty(entries.numel, dtype=entries.work, device=entries.device)
                for task in problem.tasks
            }
            for block in entries.blocks():
                for task, part in zip(problem.tasks, agreeing(block, state), strict=True):
                    flat[task][block.piece] = part
            for task, values in flat.items():
                vectors[task][name] = values.reshape(entries.shape)
    return vectors
