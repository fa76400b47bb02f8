"""Spectral STA: what is scored and selected is a rank-one component of a layer, not an entry.

Beyond the paper, and this project's own; how it was found and what was tried beside it is in
docs/methods/spectral_sta.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.linear_layers import LinearLayerMethod
from sta_lightning.arithmetic.spectral import double_deltas, eigh, joined, orthogonalised, triples
from sta_lightning.ranges import number


@dataclass(frozen=True)
class SpectralSta(LinearLayerMethod):
    """The rank-one components of the task vectors that change the layers' outputs most, orthogonal.

    A component s u v^T of delta_i, taken in the metric A of the layer's inputs, changes the outputs
    on inputs X by s^2 = ||X v s||^2 / rows: that is its importance, measured on a few unlabelled
    training samples a task, with no loss and no gradient. Of each task the top 1/N are kept, made
    orthogonal to those of the other tasks, and added up:

        A = mean over tasks of G_i / (tr G_i / in), then A + shrink * tr A / in * I
        delta_i A^(1/2) = sum of s u v^T, of which the rank // N largest s are kept
        merged delta = P(U) S P(V)^T A^(-1/2), with the polar factor P

    Tensors that are no linear layer's weight get the mean of the task vectors. With A = I it is
    TSV-M. In the metric it is never larger than the task vectors together, |merged A^(1/2)|^2 <=
    sum of |delta_i A^(1/2)|^2; as weights it can be several times larger, in directions that the
    inputs hardly have.

    Args:
        shrink: how far the metric is drawn towards the identity, which bounds what few samples can
            say of directions that they do not show; more than 0.
    """

    shrink: float = number(0.1, "(0, inf)", hint="0.1 is the default.")

    title = "Spectral STA"
    summary = "the rank-one components that change the layers' outputs most, made orthogonal between tasks"
    source = "this project"

    @override
    def layer(self, block: Block, grams: list[Tensor]) -> Tensor:
        root = self._root(grams)
        keep = min(block.base.shape) // len(block.finetuned)
        u, s, v = joined([triples(delta @ root, keep) for delta in double_deltas(block)])
        kept = (orthogonalised(u) * s) @ orthogonalised(v).mT
        merged: Tensor = torch.linalg.solve_triangular(root, kept, upper=False, left=False)
        return merged

    def _root(self, grams: list[Tensor]) -> Tensor:
        """L, lower triangular, with L L^T = A, float64 ``[in, in]``; I where all inputs are zero.

        Any root of A gives the same merge: another one turns V, and is turned back by its inverse.
        """
        size = len(grams[0])
        total = torch.zeros_like(grams[0])
        for gram in grams:
            mean = float(gram.diagonal().mean()) if size else 0.0
            if mean > 0:
                total += gram / mean
        trace = float(total.diagonal().sum())
        if not trace:
            return torch.eye(size, dtype=total.dtype, device=total.device)
        total /= len(grams)
        total.diagonal().add_(self.shrink * trace / len(grams) / size)
        root: Tensor
        root, failed = torch.linalg.cholesky_ex(total)
        if int(failed):  # the Gram matrices' rounding is larger than what was added
            values, vectors = eigh(total)
            least = self.shrink * float(values.clamp(min=0).mean())
            root = torch.linalg.qr((vectors * values.clamp(min=least).sqrt()).mT, mode="r").R.mT
        return root
