"""Fisher merging: the mean of the fine-tuned models, each entry weighted by its Fisher information.

Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block, Entries
from sta_lightning.arithmetic.method import Survey, VectorMethod
from sta_lightning.arithmetic.spectral import double_deltas
from sta_lightning.arithmetic.states import bounds, to_double, wide_dtype
from sta_lightning.errors import StaError, score_line
from sta_lightning.ranges import YesNo, number, whole, word


@dataclass(frozen=True)
class Fisher(VectorMethod):
    """Fisher merging: at every entry the sum of c_i F_i theta_i over the sum of c_i F_i.

    Args:
        floor: added to every Fisher information, so that an entry that no task uses has a weight;
            in the unit of the scores, which are sums over the samples, times ``samples``. 0 leaves
            such an entry the plain mean of the models.
        normalized: whether c_i is one over the L2 norm of the task's Fisher information over the
            whole model, so that tasks with large gradients do not outweigh the others; else all c_i
            are 1.
        samples: how many samples the scores are sums over, for a floor in the unit of their mean,
            the public code's; 1 for one in the unit of the sums.
    """

    floor: float = number(1e-6, "[0, inf)", "floor, which is added to the Fisher information,")
    normalized: bool = word(True, YesNo)
    samples: int = whole(1, "[1, inf)", "samples, over which the Fisher information is a sum,")

    title = "Fisher"
    summary = "the mean of the fine-tuned models, each entry weighted by its Fisher information"
    data = "labelled samples"
    source = "Matena and Raffel 2022"
    needs_importance = True
    measure = "fisher"

    @override
    def prepare(self, survey: Survey) -> list[float]:
        """The tasks' coefficients c_i, which add up to 1."""
        tasks = survey.problem.tasks
        if not self.normalized:
            return [1 / len(tasks)] * len(tasks)
        squares = [found for found in survey.each(_squares).values() if found]
        if not squares:  # a model without entries
            return [1 / len(tasks)] * len(tasks)
        norms = [math.sqrt(math.fsum(square)) for square in zip(*squares, strict=True)]
        for task, norm in zip(tasks, norms, strict=True):
            if not 0.0 < norm < math.inf:
                raise StaError(
                    f"the Fisher information of task '{task}' has the norm {norm}, by which it cannot be divided. Score the "
                    f"model again ({score_line('fisher')}), or ask for normalized=false."
                )
        total = math.fsum(1 / norm for norm in norms)
        return [1 / norm / total for norm in norms]

    @override
    def vector(self, block: Block, state: Sequence[float]) -> Tensor:
        """The weighted mean of the task vectors: with theta_0, that of the models."""
        moved, weights, mean = (torch.zeros_like(to_double(block.base)) for _ in range(3))
        for delta, score, share in zip(double_deltas(block), block.scores, state, strict=True):
            if bounds(score)[0] < 0:
                raise StaError(
                    f"a Fisher information is negative in tensor '{block.name}'; it is a sum of squared gradients. Score the "
                    f"models again: {score_line('fisher')}."
                )
            weight = share * (to_double(score).to(delta.device) + self.floor * self.samples)
            moved += weight * delta
            weights += weight
            mean += delta / len(block.finetuned)
        return torch.where(weights > 0, moved / weights.where(weights > 0, 1.0), mean).to(block.base)


def _squares(entries: Entries) -> list[float]:
    """Every task's sum of the squared scores of a tensor; [] for a tensor without entries."""
    found: list[float] = []
    if not entries.numel:
        return found
    for source in entries.scores:
        pieces = (source.read(piece, wide_dtype(source.dtype)) for piece in entries.pieces())
        found.append(math.fsum(float(to_double(values).square().sum()) for values in pieces))
    if not all(map(math.isfinite, found)):
        entries.refuse_infinite()
    return found
