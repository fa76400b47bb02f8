"""NegMerge: forgetting by what several fine-tunings on the task agree on.

Kim et al., "NegMerge: Sign-Consensual Weight Merging for Machine Unlearning", ICML 2025 (preprint
2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.method import Combined, MergeMethod
from sta_lightning.ranges import finite


@dataclass(frozen=True)
class NegMerge(MergeMethod):
    """NegMerge: theta_k - scale * the mean of the task vectors where all of them have one sign.

    Zero has no sign and agrees with nothing. With a single fine-tuning this is task arithmetic.

    Args:
        scale: the coefficient gamma.
    """

    scale: float = finite(1.0)

    title = "NegMerge"
    summary = "the mean of several fine-tunings' task vectors, where all signs agree, is taken out"
    coefficient = "scale"
    source = "Kim et al. 2024"
    many = True

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
