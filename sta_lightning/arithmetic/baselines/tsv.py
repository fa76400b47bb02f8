"""TSV-M: the largest singular triples of every task vector, made orthogonal between the tasks.

Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model Merging", CVPR 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.spectral import (
    Spectral,
    double_deltas,
    joined,
    orthogonalised,
    rounding,
    triples,
)
from sta_lightning.ranges import finite


@dataclass(frozen=True)
class Tsv(Spectral):
    """TSV-M: of every task vector's matrices the top 1/N singular triples, made orthogonal.

    Args:
        scale: the coefficient of the merged vector; the authors search it on validation data, up to
            3.
    """

    scale: float = finite(1.0)

    title = "TSV-M"
    summary = "the top singular triples of all task vectors, made orthogonal to each other"
    source = "Gargiulo et al. 2025"

    @override
    def spectral(self, block: Block) -> Tensor:
        """U S V^T of the triples kept, U and V orthogonalised; 0 with fewer triples than tasks."""
        keep = min(block.base.shape) // len(block.finetuned)
        floor = rounding(block)
        u, s, v = joined([triples(delta, keep, floor) for delta in double_deltas(block)])
        return (orthogonalised(u) * s) @ orthogonalised(v).mT
