"""RegMean: linear layers that fit the fine-tuned models' outputs on their inputs by least squares.

Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.checks import check_range
from sta_lightning.arithmetic.linear_layers import LinearLayerMethod
from sta_lightning.arithmetic.problem import Block
from sta_lightning.arithmetic.spectral import double_deltas
from sta_lightning.arithmetic.states import to_double


@dataclass(frozen=True)
class RegMean(LinearLayerMethod):
    """RegMean: of a linear layer (sum of delta_i G_i) (sum of G_i)^-1, of other tensors the mean.

    G_i = X_i^T X_i / rows for the inputs X_i ``[rows, in]`` of the layer in the i-th fine-tuned
    model. Sums in place of means give a task the weight of its rows.

    Args:
        ratio: by which the entries of G beside the diagonal are multiplied, in [0, 1]. Below 1 the
            sum has an inverse wherever there are inputs.
    """

    ratio: float = 0.95

    title = "RegMean"
    summary = "linear layers that answer as the fine-tuned models do, by least squares over their inputs"
    source = "Jin et al. 2023"

    def __post_init__(self) -> None:
        what = "ratio, by which the Gram matrices' entries beside the diagonal are multiplied,"
        check_range(self.ratio, "[0, 1]", what)

    @override
    def layer(self, block: Block, grams: list[Tensor]) -> Tensor:
        """The task vector of the merged layer.

        It is computed as the mean of the task vectors and what has to be added to it, so that
        inputs that no model ever saw leave the mean.
        """
        mean = torch.zeros_like(to_double(block.base))
        for delta in double_deltas(block):
            mean += delta / len(block.finetuned)
        residual, total = torch.zeros_like(mean), mean.new_zeros(mean.shape[1], mean.shape[1])
        precision = max(torch.finfo(gram.dtype).eps for gram in block.grams)
        for delta, gram in zip(double_deltas(block), grams, strict=True):
            shrunk = self.ratio * gram
            shrunk.diagonal().copy_(gram.diagonal())
            residual += (delta - mean) @ shrunk
            total += shrunk
        return mean + times_inverse(residual, total, precision)


def times_inverse(left: Tensor, gram: Tensor, precision: float) -> Tensor:
    """``left`` times the (pseudo-)inverse of a sum of Gram matrices, whose inputs may be dependent.

    The inputs are first scaled to length one, so that the test for dependence knows no units. With
    a ratio below 1 no eigenvalue of the scaled matrix is then below 1 - ratio, and Cholesky's
    factors serve; if it is singular to the precision of its entries, the directions without inputs
    are left out: the answer has nothing there.

    Args:
        left: float64 ``[out, in]``, each row in the span of the inputs.
        gram: float64 ``[in, in]``, positive semidefinite.
        precision: relative error of the entries of ``gram``.

    Returns:
        Float64 ``[out, in]``.
    """
    size = len(gram)
    lengths = gram.diagonal().sqrt()
    dead = lengths == 0
    scale = torch.where(dead, 0.0, 1 / lengths.where(~dead, 1.0))
    scaled = gram * scale * scale[:, None]
    scaled.diagonal().masked_fill_(dead, 1.0)  # ``left`` is zero there, once scaled
    # What rounding makes of an eigenvalue zero: of the entries, at random, and of the decomposition
    # itself.
    noise = 10 * (math.sqrt(size) * precision + size * torch.finfo(torch.float64).eps)
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if not size or (not int(failed) and float(factor.diagonal().min()) ** 2 > noise):
        return torch.cholesky_solve((left * scale).mT, factor).mT * scale
    values, vectors = torch.linalg.eigh(scaled)
    vectors, values = vectors[:, values > noise], values[values > noise]
    found: Tensor = ((left * scale) @ vectors / values) @ vectors.mT * scale
    return found
