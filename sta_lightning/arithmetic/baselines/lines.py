"""LiNeS: scale a merged task vector block by block, the deeper the more.

Wang et al., "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.depth import depths
from sta_lightning.arithmetic.entries import Block, Entries
from sta_lightning.arithmetic.inner import OfAnother
from sta_lightning.arithmetic.method import Survey
from sta_lightning.arithmetic.states import to_double
from sta_lightning.ranges import finite


@dataclass(frozen=True)
class Lines(OfAnother):
    """LiNeS: theta_0 + (alpha + beta * l / (L - 1)) * another method's vector, in block l of L.

    alpha = (L1 norm of the sum of the task vectors) / (L1 norm of the other method's vector) / N,
    over all floating-point tensors: 1/N for task arithmetic. The other method has a coefficient of
    1 where it has one, and its defaults besides.

    Args:
        inner: the other method, by name; one that makes a task vector of all of them.
        beta: how much more the last block is scaled than the first; tuned in place of the other
            method's coefficient.

    Raises:
        StaError: if ``inner`` is unknown or makes no task vector, or ``beta`` is not finite.
    """

    inner: str = "task_arithmetic"
    beta: float = finite(0.4)

    title = "LiNeS"
    summary = "another method's task vector, scaled more in deeper blocks"
    coefficient = "beta"
    source = "Wang et al. 2024 (LiNeS)"

    @override
    def prepare(self, survey: Survey) -> tuple[float, dict[str, float], Any]:
        """alpha, the depth of every tensor, and what the other method prepared."""
        made = self._made
        prepared = super().prepare(survey)

        def look(entries: Entries) -> tuple[float, float]:
            state = made.prepare_tensor(entries, prepared)

            def norms(block: Block) -> tuple[float, float]:
                total = torch.zeros_like(to_double(block.base))
                for delta in block.deltas():
                    total += to_double(delta)
                return float(total.abs().sum()), float(to_double(made.vector(block, state)).abs().sum())

            parts = entries.look(norms, whole=made.scope == "tensor")
            return sum(plain for plain, _ in parts), sum(merged for _, merged in parts)

        found = survey.each(look)
        plain, merged = (sum(norms[i] for norms in found.values()) for i in (0, 1))
        # A vector of zeros stays one, whatever it is multiplied with.
        alpha = plain / merged / len(survey.problem.tasks) if merged else 0.0
        return alpha, depths(found), prepared

    @override
    def prepare_tensor(
        self, entries: Entries, prepared: tuple[float, dict[str, float], Any]
    ) -> tuple[float, Any]:
        """The tensor's coefficient, and what the other method prepared for it."""
        alpha, depth, inner = prepared
        return alpha + self.beta * depth[entries.name], self._made.prepare_tensor(entries, inner)

    @override
    def vector(self, block: Block, state: tuple[float, Any]) -> Tensor:
        coefficient, inner = state
        return coefficient * self._made.vector(block, inner)
