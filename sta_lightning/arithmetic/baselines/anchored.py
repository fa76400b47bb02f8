"""Anchored regression: from any merge towards the one that keeps the layers' outputs.

Li et al., "Bayesian Model Merging", arXiv 2605.12843: the anchor is the mean of a Gaussian prior of
the weights, and a ridge is its precision. The authors search the ridge of every layer on validation
data; here it is one number, in the unit of each layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.inner import OfAnother
from sta_lightning.arithmetic.linear_layers import unit_gram, wide_grams
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.quadratic import sums
from sta_lightning.arithmetic.spectral import double_deltas, gram, is_matrix
from sta_lightning.arithmetic.states import to_double
from sta_lightning.ranges import number, word

Metric = Literal["inputs", "changes"]


@dataclass(frozen=True)
class Anchored(OfAnother):
    """Anchored regression: tau_0 + (sum of (delta_i - tau_0) G_i) (G + mu I)^-1, G = sum of G_i.

    Of all merges of a layer the one with the least squared error of its outputs over the tasks'
    inputs, plus mu |tau - tau_0|^2; mu is ``ridge`` times the mean eigenvalue of G.

    Args:
        inner: the method, by name, whose task vector is the anchor tau_0.
        ridge: how firmly it holds, more than 0.
        metric: ``"inputs"`` for G_i = X_i^T X_i from unlabelled samples; ``"changes"`` for
            delta_i^T delta_i, no data. Each is divided by its mean eigenvalue.
    """

    inner: str = "spectral_sta"
    ridge: float = number(1.0, "(0, inf)", hint="1 holds as firmly as the inputs' mean square does.")
    metric: Metric = word("inputs", Metric)

    title = "Anchored regression"
    summary = "another method's task vector, moved to keep the layers' outputs"
    data = "unlabelled samples"
    coefficient = "ridge"
    source = "Li et al. 2026 (BMM)"
    scope = "tensor"
    needs_grams = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scope", "tensor")
        if self.metric == "inputs":
            object.__setattr__(self, "needs_grams", True)
            if self._made.data == "nothing":
                object.__setattr__(self, "data", type(self).data)

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.metric == "inputs":
            problem.check_grams(self.title)

    @override
    def vector(self, block: Block, state: Any) -> Tensor:
        anchor = self._made.vector(block, state)
        if self.metric == "inputs":
            metrics: Iterable[Tensor] = (unit_gram(inputs) for inputs in wide_grams(block))
            able = bool(block.grams)
        else:
            metrics = (unit_gram(gram(delta)) for delta in double_deltas(block))
            able = is_matrix(block)
        if not able:
            return anchor
        start = to_double(anchor)
        parts = (
            (delta @ metric, metric) for delta, metric in zip(double_deltas(block), metrics, strict=True)
        )
        residual, total = sums(parts, start)
        total.diagonal().add_(self.ridge * (float(total.diagonal().mean()) or 1.0))
        moved = torch.cholesky_solve(residual.mT, torch.linalg.cholesky(total)).mT
        return (start + moved).to(block.base)
