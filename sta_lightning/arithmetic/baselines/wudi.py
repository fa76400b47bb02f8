"""WUDI in closed form, SWUDI and SWUDI-A: as little interference as a spectral filter allows.

Cheng et al., "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via
Task Vectors", ICML 2025; SWUDI and SWUDI-A: arXiv 2606.07289.
"""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.quadratic import Quadratic
from sta_lightning.ranges import finite, number


class _Interference(Quadratic, ABC):
    """The metric delta_i^T delta_i / |delta_i|^2, anchored at the sum of the task vectors."""

    @override
    def factor(self, delta: Tensor) -> Tensor:
        length = float(torch.linalg.matrix_norm(delta))
        return delta / length if length else delta


@dataclass(frozen=True)
class Wudi(_Interference):
    """WUDI: the minimum of the sum of |(tau - delta_i) delta_i^T|^2 / |delta_i|^2.

    Its authors go 300 steps of Adam from the sum of the task vectors towards it; here it is
    computed.

    Args:
        ridge: mu of the filter lambda / (lambda + mu) of the eigenvalues, whose sum is the number
            of tasks: how far the directions that few task vectors use stay at the sum of the task
            vectors. 0 for the minimum itself.
        scale: the coefficient of the merged vector.
    """

    ridge: float = number(0.0, "[0, inf)", hint="0 is the minimum itself.")
    scale: float = finite(1.0)

    title = "WUDI (closed form)"
    coefficient = None
    summary = "least squares over the task vectors' own Gram matrices: as little interference as possible"
    source = "Cheng et al. 2025"

    @override
    def respond(self, values: Tensor) -> Tensor:
        return values / (values + self.ridge).where(values > 0, 1.0)

    @override
    def rational(self) -> tuple[float, float]:
        return self.ridge, 0.0


@dataclass(frozen=True)
class Swudi(_Interference):
    """SWUDI: WUDI's problem solved for a while, by gradient flow, in the largest directions alone.

    Args:
        time: t of the filter 1 - exp(-t lambda), more than 0; the authors tune it on test data,
            1300 for ViT-B/32 and 1800 for ViT-B/16.
        rank: share of the input directions that are solved for, largest eigenvalues first, in
            (0, 1]; the others stay at the sum of the task vectors. The authors tune it likewise.
        scale: the coefficient of the merged vector.
    """

    time: float = number(1300.0, "(0, inf)", hint="The authors use 1300 for ViT-B/32, 1800 for ViT-B/16.")
    rank: float = number(0.65, "(0, 1]", "rank, the share of the directions,", "The authors use 0.65.")
    scale: float = finite(1.0)

    title = "SWUDI"
    summary = "WUDI with a soft filter over a share of the directions"
    source = "arXiv 2606.07289"

    @override
    def respond(self, values: Tensor) -> Tensor:
        return _first(-torch.expm1(-self.time * values), math.ceil(self.rank * len(values)))


@dataclass(frozen=True)
class SwudiA(_Interference):
    """SWUDI-A: WUDI's problem solved in as many of the largest directions as a matrix really has.

    Of each matrix K = ceil((sum of sqrt(lambda))^2 / sum of lambda) directions: the participation
    ratio of the square roots of the eigenvalues. The others stay at the sum of the task vectors.

    Args:
        scale: the coefficient of the merged vector.
    """

    scale: float = finite(1.0)

    title = "SWUDI-A"
    coefficient = None
    summary = "WUDI in as many directions as a matrix really has: no data, nothing to tune"
    source = "arXiv 2606.07289"

    @override
    def respond(self, values: Tensor) -> Tensor:
        total = float(values.sum())
        rank = math.ceil(float(values.sqrt().sum()) ** 2 / total) if total else 0
        return _first(torch.ones_like(values), rank)


def _first(values: Tensor, count: int) -> Tensor:
    """The values, zero from index ``count`` on."""
    return values * (torch.arange(len(values), device=values.device) < count)
