"""Consensus merging: drop what fewer than so many tasks use, by their TALL masks.

Wang et al., "Localizing Task Information for Improved Model Merging and Compression", ICML 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Addresses, Block
from sta_lightning.arithmetic.method import Answer, Native, Survey, VectorMethod
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.states import to_double
from sta_lightning.errors import StaError, listed
from sta_lightning.kernels import Loops, loops
from sta_lightning.ranges import finite, number, whole


@dataclass(frozen=True)
class Consensus(VectorMethod):
    """Consensus merging: theta_0 + scale * the sum of the task vectors where enough tasks use it.

    A task uses an entry if abs(delta_i) > ``tall`` * abs(sum of delta - delta_i): its TALL mask.

    Args:
        tall: lambda of the TALL masks, one number or one for every task by its name; the authors
            choose it for each task among 0.2, 0.3, ..., 0.6 on validation images.
        agree: how many tasks have to use an entry, 1 or more. 1 drops what no task uses, 2 what
            serves a single task too.
        scale: the coefficient of the sum.
    """

    tall: float | Mapping[str, float] = number(
        0.4,
        "[0, inf)",
        "tall, the lambda of the TALL masks,",
        "The authors choose among 0.2, 0.3, ..., 0.6.",
        by_task=True,
    )
    agree: int = whole(
        2, "[1, inf)", "agree, the number of tasks that have to use an entry,", "The authors use 2."
    )
    scale: float = finite(0.4)

    title = "Consensus"
    summary = "the sum of the task vectors where at least so many tasks use it (TALL masks)"
    coefficient = "scale"
    source = "Wang et al. 2024 (TALL masks)"

    @override
    def check(self, problem: Problem) -> None:
        if len(problem.finetuned) < self.agree:
            raise StaError(
                f"agree={self.agree} tasks have to use an entry, and there are only {len(problem.finetuned)}: "
                f"{listed(problem.finetuned)}. Nothing would be kept; give more tasks or a smaller number."
            )
        if isinstance(self.tall, Mapping) and set(self.tall) != set(problem.finetuned):
            raise StaError(
                f"tall is given for the tasks {listed(self.tall)}, and {listed(problem.finetuned)} are merged. Give one "
                "number for every one of them, or one for all."
            )

    @override
    def prepare(self, survey: Survey) -> tuple[float, ...]:
        """The lambda of every task."""
        tasks = survey.problem.tasks
        if isinstance(self.tall, Mapping):
            return tuple(float(self.tall[task]) for task in tasks)
        return (float(self.tall),) * len(tasks)

    @override
    def native(self, tasks: int) -> Native | None:
        def call(kernel: Loops, at: Addresses, state: tuple[float, ...], out: int, size: int) -> Answer:
            models = at.base, at.origin, at.finetuned
            return Answer(kernel.consensus(*models, state, self.agree, self.scale, out, size))

        return Native(loops, call, reads_origin=True)

    @override
    def vector(self, block: Block, state: tuple[float, ...]) -> Tensor:
        # In float64, so that no comparison is decided by rounding of the sum.
        total = torch.zeros_like(to_double(block.base))
        for delta in block.deltas():
            total += to_double(delta)
        users = torch.zeros(total.shape, dtype=torch.int32, device=total.device)
        for delta, tall in zip(block.deltas(), state, strict=True):
            wide = to_double(delta)
            users += wide.abs() > (total - wide).abs() * tall
        return (self.scale * torch.where(users >= self.agree, total, 0.0)).to(block.base)
