"""RegMean: linear layers that fit the fine-tuned models' outputs on their inputs by least squares.

Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.linear_layers import LinearLayerMethod
from sta_lightning.arithmetic.quadratic import sums, times_inverse
from sta_lightning.arithmetic.spectral import double_deltas, total_delta
from sta_lightning.ranges import number


@dataclass(frozen=True)
class RegMean(LinearLayerMethod):
    """RegMean: of a linear layer (sum of delta_i G_i) (sum of G_i)^-1, of other tensors the mean.

    G_i = X_i^T X_i / rows for the inputs X_i ``[rows, in]`` of the layer in the i-th fine-tuned
    model. Sums in place of means give a task the weight of its rows.

    Args:
        ratio: by which the entries of G beside the diagonal are multiplied, in [0, 1]. Below 1 the
            sum has an inverse wherever there are inputs.
    """

    ratio: float = number(
        0.95, "[0, 1]", "ratio, by which the Gram matrices' entries beside the diagonal are multiplied,"
    )

    title = "RegMean"
    summary = "linear layers that answer as the fine-tuned models do, by least squares over their inputs"
    source = "Jin et al. 2023"

    @override
    def layer(self, block: Block, grams: list[Tensor]) -> Tensor:
        """The task vector of the merged layer.

        It is computed as the mean of the task vectors and what has to be added to it, so that
        inputs that no model ever saw leave the mean.
        """
        mean = total_delta(block) / len(block.finetuned)
        precision = max(torch.finfo(gram.dtype).eps for gram in block.grams)
        shrunk = map(self._shrunk, grams)
        parts = ((delta @ gram, gram) for delta, gram in zip(double_deltas(block), shrunk, strict=True))
        residual, total = sums(parts, mean)
        return mean + times_inverse(residual, total, precision)

    def _shrunk(self, gram: Tensor) -> Tensor:
        shrunk = self.ratio * gram
        shrunk.diagonal().copy_(gram.diagonal())
        return shrunk
