"""DC-Merge: task vectors in common orthogonal bases, where they are trimmed and agree on signs.

"DC-Merge: Improving Model Merging with Directional Consistency", CVPR 2026, arXiv 2603.06242; as in
the authors' code for models fine-tuned whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.selection import largest_entries
from sta_lightning.arithmetic.spectral import (
    Spectral,
    double_deltas,
    joined,
    orthogonalised,
    rounding,
    triples,
)
from sta_lightning.ranges import finite, number


@dataclass(frozen=True)
class DcMerge(Spectral):
    """DC-Merge: polar(U) (M within the tasks' own blocks) polar(V)^T.

    U and V hold the top 1/N singular vectors of every task vector, side by side, as for TSV-M. In
    the bases polar(U) and polar(V) every truncated task vector is a matrix M_i, of which the
    ``keep`` largest entries stay. M is the mean, entry by entry, of those whose sign is that of
    their sum; outside the square blocks that belong to one task it is zero.

    Args:
        keep: share of the entries of M_i, in (0, 1].
        scale: the coefficient of the merged vector; the authors search it on validation data, up to
            3.
    """

    keep: float = number(1e-3, "(0, 1]", "keep, the share of the entries,", "The authors use 0.001.")
    scale: float = finite(1.0)

    title = "DC-Merge"
    summary = "the top singular triples of all task vectors in common orthogonal bases, trimmed, signs agreed"
    source = "arXiv 2603.06242"

    @override
    def spectral(self, block: Block) -> Tensor:
        rank, tasks = min(block.base.shape), len(block.finetuned)
        each = rank // tasks
        floor = rounding(block)
        parts = [triples(delta, each, floor) for delta in double_deltas(block)]
        u, _, v = joined(parts)
        left, right = orthogonalised(u), orthogonalised(v)
        count = max(1, int(self.keep * rank * rank))
        seen = torch.stack(
            [largest_entries(((left.mT @ part.u) * part.s) @ (part.v.mT @ right), count) for part in parts]
        )
        agreed = seen.sign() == seen.sum(0).sign()
        mean = (seen * agreed).sum(0) / agreed.sum(0).clamp(min=1)
        own = torch.arange(each * tasks, device=mean.device) // max(each, 1)
        return left @ (mean * (own == own[:, None])) @ right.mT
