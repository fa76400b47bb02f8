"""ACTMat and TACT: RegMean with the Gram matrices of the task vectors in place of the inputs'.

"Model Merging via Data-Free Covariance Estimation", arXiv 2604.01329: a layer's gradients, and so
its task vector, lie in the span of its inputs, which makes delta_i^T delta_i an estimate of X^T X.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.quadratic import Quadratic
from sta_lightning.arithmetic.selection import largest_entries
from sta_lightning.ranges import finite, number


@dataclass(frozen=True)
class ActMat(Quadratic):
    """ACTMat: (sum of delta_i C_i) (sum of C_i)^+ with C_i = delta_i^T delta_i.

    Args:
        cutoff: eigenvalues of the sum of C_i up to this share of the largest, times their number,
            count as zero. The default is that of the authors' pseudo-inverse, the rounding error of
            float32: for 768 inputs 9.2e-5.
        scale: the coefficient of the merged vector; the authors have none.
    """

    cutoff: float = number(
        torch.finfo(torch.float32).eps, "[0, 1)", hint="The authors' is float32's rounding error, 1.2e-7."
    )
    scale: float = finite(1.0)

    anchored = False
    title = "ACTMat"
    coefficient = None
    summary = "RegMean with the task vectors' own Gram matrices in place of the inputs': no data"
    source = "arXiv 2604.01329"

    @override
    def factor(self, delta: Tensor) -> Tensor:
        return delta

    @override
    def respond(self, values: Tensor) -> Tensor:
        return (values > self.cutoff * len(values) * values[0]).to(values)

    @override
    def rational(self) -> tuple[float, float]:
        return 0.0, self.cutoff


@dataclass(frozen=True)
class Tact(ActMat):
    """TACT: ACTMat whose C_i are made of the largest entries of the task vectors alone.

    Args:
        keep: share of the entries of a matrix, largest magnitudes first, that make up its C_i, in
            (0, 1]; the task vectors that are merged stay whole.
    """

    keep: float = number(0.5, "(0, 1]", "keep, the share of the entries,", "The authors use 0.5.")

    title = "TACT"
    summary = "ACTMat with Gram matrices of the largest entries of the task vectors"

    @override
    def factor(self, delta: Tensor) -> Tensor:
        return largest_entries(delta, max(1, round(self.keep * delta.numel())))
