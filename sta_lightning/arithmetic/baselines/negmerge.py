"""NegMerge: forgetting by what several fine-tunings on the task agree on.

Kim et al., "NegMerge: Sign-Consensual Weight Merging for Machine Unlearning", ICML 2025 (preprint
2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.checks import check_scale
from sta_lightning.arithmetic.linear import FORGETS
from sta_lightning.arithmetic.memory import run_in_memory
from sta_lightning.arithmetic.method import Combined, MergeMethod
from sta_lightning.arithmetic.problem import Block
from sta_lightning.arithmetic.states import StateDict
from sta_lightning.errors import StaError


@dataclass(frozen=True)
class NegMerge(MergeMethod):
    """NegMerge: theta_k - scale * the mean of the task vectors where all of them have one sign, and nothing elsewhere.

    Zero has no sign and agrees with nothing. With a single fine-tuning this is task arithmetic.

    Args:
        scale: the coefficient gamma.

    Raises:
        StaError: if ``scale`` is not finite.
    """

    scale: float = 1.0

    title: ClassVar[str] = "NegMerge"
    summary: ClassVar[str] = (
        "the mean of several fine-tunings' task vectors, where all signs agree, is taken out"
    )
    coefficient: ClassVar[str | None] = "scale"
    source: ClassVar[str] = "Kim et al. 2024"
    many: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_scale(self.scale)

    @override
    def combine(self, block: Block, state: Any) -> Combined:
        total = torch.zeros_like(block.base)
        rising, falling = (torch.ones_like(block.base, dtype=torch.bool) for _ in range(2))
        for delta in block.deltas():
            total += delta
            rising &= delta > 0
            falling &= delta < 0
        agreed = torch.where(rising | falling, total / len(block.finetuned), 0.0)
        return Combined(block.base - self.scale * agreed)


def negmerge(
    model: StateDict,
    pretrained: StateDict,
    finetuned: Sequence[StateDict],
    *,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Forgetting by NegMerge: see :class:`NegMerge`.

    Args:
        model: the model that shall forget; tensor name -> tensor of any shape.
        pretrained: the model that all of ``finetuned`` started from; the same names and shapes.
        finetuned: one or more models fine-tuned on the task to forget, each in another way.
        scale: the coefficient gamma.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``model``.

    Returns:
        A new model; integer buffers are copied from ``model``.

    Raises:
        StaError: if ``scale`` is not finite, ``finetuned`` is no sequence of models, models do not
            match, or an entry is not finite.
    """
    if not isinstance(finetuned, Sequence):
        raise StaError(
            f"finetuned must be a list of state dicts, one for each fine-tuning on the task, and is a "
            f"{type(finetuned).__name__}."
        )
    numbered = {f"target ({number})": model for number, model in enumerate(finetuned, 1)}
    return run_in_memory(
        NegMerge(scale), model, numbered, origin=pretrained, base_title=FORGETS, dtype=dtype
    ).weights
