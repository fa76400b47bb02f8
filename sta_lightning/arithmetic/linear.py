"""The methods without masks: average, task arithmetic, negation (Eq. 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Addresses, Block
from sta_lightning.arithmetic.memory import run_in_memory
from sta_lightning.arithmetic.method import Answer, Combined, MergeMethod, Native, VectorMethod
from sta_lightning.arithmetic.states import StateDict
from sta_lightning.kernels import Loops, loops
from sta_lightning.ranges import finite


def scaled_sum(block: Block, scale: float) -> Tensor:
    """The sum of the task vectors, scale * sum of delta_i."""
    total = torch.zeros_like(block.base)
    for delta in block.deltas():
        total += delta
    return scale * total


def native_sum(scale: float) -> Native:
    """Base + :func:`scaled_sum` in machine code."""

    def call(kernel: Loops, addresses: Addresses, state: Any, out: int, size: int) -> Answer:
        base, origin, finetuned, _ = addresses
        return Answer(kernel.linear(base, origin, finetuned, scale, out, size))

    return Native(loops, call, reads_origin=True)


@dataclass(frozen=True)
class Average(VectorMethod):
    """The plain average of the fine-tuned models: theta_0 + (1/N) sum of delta_i."""

    title = "Average"
    summary = "the mean of the fine-tuned models"
    source = "Wortsman et al. 2022 (model soups)"

    @override
    def vector(self, block: Block, state: Any) -> Tensor:
        return scaled_sum(block, 1.0 / len(block.finetuned))

    @override
    def native(self, tasks: int) -> Native | None:
        return native_sum(1.0 / tasks)


@dataclass(frozen=True)
class TaskArithmetic(VectorMethod):
    """Task arithmetic: theta_0 + scale * sum of delta_i (Eq. 8).

    Args:
        scale: the coefficient lambda; the STA paper's baseline uses 0.4.
    """

    scale: float = finite(0.4)

    title = "Task arithmetic"
    summary = "the sum of the task vectors, times a coefficient"
    coefficient = "scale"
    source = "Ilharco et al. 2023"

    @override
    def vector(self, block: Block, state: Any) -> Tensor:
        return scaled_sum(block, self.scale)

    @override
    def native(self, tasks: int) -> Native | None:
        return native_sum(self.scale)


@dataclass(frozen=True)
class Negation(MergeMethod):
    """Forgetting by task arithmetic: theta_k - scale * delta.

    Args:
        scale: the coefficient gamma.
    """

    scale: float = finite(1.0)

    title = "Task arithmetic"
    summary = "the task vector is taken out, times a coefficient"
    coefficient = "scale"
    source = "Ilharco et al. 2023"

    @override
    def combine(self, block: Block, state: Any) -> Combined:
        (delta,) = block.deltas()
        return Combined(block.base - self.scale * delta)

    @override
    def native(self, tasks: int) -> Native | None:
        def call(kernel: Loops, addresses: Addresses, state: Any, out: int, size: int) -> Answer:
            base, origin, (finetuned,), _ = addresses
            return Answer(kernel.negate(base, origin, finetuned, self.scale, out, size))

        return Native(loops, call, reads_origin=True)


def average(
    pretrained: StateDict, finetuned: Mapping[str, StateDict], *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The plain average of the fine-tuned models: theta_0 + (1/N) sum of delta_i.

    Args:
        pretrained: tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes, one or more.
        dtype: type of the result, see :func:`~sta_lightning.arithmetic.fuse`.

    Returns:
        A new model; integer buffers are copied from ``pretrained``.

    Raises:
        StaError: if there is no task, models do not match, or an entry is not finite.
    """
    return run_in_memory(Average(), pretrained, finetuned, dtype=dtype).weights


def task_arithmetic(
    pretrained: StateDict,
    finetuned: Mapping[str, StateDict],
    *,
    scale: float = 0.4,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Task arithmetic: theta_0 + scale * sum of delta_i (Eq. 8).

    Args:
        pretrained: tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes, one or more.
        scale: the coefficient lambda; the STA paper's baseline uses 0.4.
        dtype: type of the result, see :func:`~sta_lightning.arithmetic.fuse`.

    Returns:
        A new model; integer buffers are copied from ``pretrained``.

    Raises:
        StaError: as :func:`average`, and if ``scale`` is not finite.
    """
    return run_in_memory(TaskArithmetic(scale), pretrained, finetuned, dtype=dtype).weights


def negate(
    model: StateDict,
    pretrained: StateDict,
    finetuned: StateDict,
    *,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Forgetting by task arithmetic: theta_k - scale * delta.

    Args:
        model: the model that shall forget; tensor name -> tensor of any shape.
        pretrained: the model that ``finetuned`` started from; the same names and shapes.
        finetuned: the model fine-tuned on the task to forget.
        scale: the coefficient gamma.
        dtype: type of the result, see :func:`~sta_lightning.arithmetic.fuse`.

    Returns:
        A new model; integer buffers are copied from ``model``.

    Raises:
        StaError: as :func:`average`, and if ``scale`` is not finite.
    """
    return run_in_memory(
        Negation(scale), model, {"target": finetuned}, origin=pretrained, base_title=FORGETS, dtype=dtype
    ).weights


FORGETS = "the model that shall forget"
