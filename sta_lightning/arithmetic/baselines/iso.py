"""Iso-C and Iso-CTS: a merged task vector whose singular values are all the same.

Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific
Subspaces", ICML 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.spectral import (
    Spectral,
    double_deltas,
    joined,
    orthogonalised,
    rounding,
    total_delta,
    triples,
)
from sta_lightning.ranges import finite, number


@dataclass(frozen=True)
class IsoC(Spectral):
    """Iso-C: the sum of the task vectors, the singular values of a matrix replaced by their mean.

    Args:
        scale: the coefficient of the merged vector; the authors search it on validation data, up to
            3.
    """

    scale: float = finite(1.0)

    title = "Iso-C"
    summary = "the sum of the task vectors with equal singular values"
    source = "Marczak et al. 2025"

    @override
    def spectral(self, block: Block) -> Tensor:
        u, s, v = triples(total_delta(block), floor=rounding(block, len(block.finetuned)))
        return s.mean() * (u @ v.mT)


def shares(rank: int, tasks: int, common: float) -> tuple[int, int]:
    """How many of ``rank`` triples Iso-CTS takes from the sum, and from each task's remainder.

    The common part gives or takes so many that the rest can be divided evenly.
    """
    specific = min(round((rank - int(rank * common)) / tasks), rank // tasks)
    return rank - specific * tasks, specific


@dataclass(frozen=True)
class IsoCts(Spectral):
    """Iso-CTS: the largest triples of the sum and those of every task, with equal singular values.

    Args:
        common: share of the triples that come from the sum of the task vectors, in [0, 1]; the
            authors use 0.8.
        scale: the coefficient of the merged vector; the authors search it on validation data, up to
            3.
    """

    common: float = number(
        0.8, "[0, 1]", "common, the share of the common directions,", "The authors use 0.8."
    )
    scale: float = finite(1.0)

    title = "Iso-CTS"
    summary = "common and task-specific directions of the task vectors with equal singular values"
    source = "Marczak et al. 2025"

    @override
    def spectral(self, block: Block) -> Tensor:
        rank = min(block.base.shape)
        common, specific = shares(rank, len(block.finetuned), self.common)
        floor = rounding(block)
        shared = triples(total_delta(block), common, rounding(block, len(block.finetuned)))
        # The task vectors are subtracted once more rather than kept: all of them in float64 are a
        # lot of memory.
        own = [
            # What is left of a task vector in the common directions is rounding of float64.
            triples(
                delta - shared.u @ (shared.u.mT @ delta),
                specific,
                max(floor, rank * torch.finfo(delta.dtype).eps * float(torch.linalg.matrix_norm(delta))),
            )
            for delta in double_deltas(block)
            if specific
        ]
        u, s, v = joined([*own, shared])
        return s.mean() * (orthogonalised(u) @ orthogonalised(v).mT)
