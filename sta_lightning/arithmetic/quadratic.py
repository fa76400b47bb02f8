"""Merges that solve one quadratic problem in every matrix: a metric, a spectral filter, an anchor.

Of all tau ``[out, in]`` the one with the least sum of tr((tau - delta_i) C_i (tau - delta_i)^T),
but approached from an anchor tau_0 only as far as a filter h of the eigenvalues says:

    C = sum of C_i = Q diag(lambda) Q^T
    tau = tau_0 + (sum of (delta_i - tau_0) C_i) Q diag(h / lambda) Q^T

With h = 1 it is the minimum itself where C has an inverse, and the anchor where C is zero.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.spectral import Spectral, double_deltas, eigh, gram, total_delta

_EPS = torch.finfo(torch.float64).eps

Filter = Callable[[Tensor], Tensor]
"""Eigenvalues ``[in]``, none negative, largest first -> h ``[in]``, 0 to 1."""


def sums(parts: Iterable[tuple[Tensor, Tensor]], anchor: Tensor) -> tuple[Tensor, Tensor]:
    """What a problem comes down to: the sum of (delta_i - tau_0) C_i, and C.

    Args:
        parts: delta_i C_i ``[out, in]`` and C_i ``[in, in]`` of every task, float64; C_i is
            symmetric and positive semidefinite.
        anchor: tau_0, float64 ``[out, in]``.
    """
    products, total = torch.zeros_like(anchor), anchor.new_zeros(anchor.shape[1], anchor.shape[1])
    for product, metric in parts:
        products += product
        total += metric
    return products - anchor @ total, total


def times_filtered(left: Tensor, metric: Tensor, respond: Filter, size: int | None = None) -> Tensor:
    """``left`` Q diag(h / lambda) Q^T; eigenvalues that are zero to float64's precision left out.

    Args:
        left: float64 ``[out, in]``.
        metric: Q diag(lambda) Q^T, float64 ``[in, in]``.
        respond: gives h.
        size: how many eigenvalues there are with those, all zero, that ``metric`` leaves out; None
            for its own number.
    """
    found, vectors = eigh(metric)
    values = found.new_zeros(size or len(found))
    values[: len(found)] = found
    kept = values > len(values) * _EPS * values[0]
    values = values.where(kept, 0.0)
    weights = torch.where(kept, respond(values) / values.where(kept, 1.0), 0.0)[: len(found)]
    vectors, weights = vectors[:, weights != 0], weights[weights != 0]
    product: Tensor = ((left @ vectors) * weights) @ vectors.mT
    return product


def times_definite_inverse(left: Tensor, metric: Tensor, ridge: float, least: float) -> Tensor | None:
    """``left`` (C + ridge)^-1 by Cholesky's factors, in a fifth of the time of the spectrum.

    Args:
        left: float64 ``[out, in]``.
        metric: C, float64 ``[in, in]``, positive semidefinite.
        ridge: 0 or more.
        least: share of C's largest eigenvalue that every one has to exceed, at least float64's
            precision times their number.

    Returns:
        Float64 ``[out, in]``; ``None`` where an eigenvalue may be smaller: with the Frobenius norm
        |C|, which is no less than the largest, C - least * |C| has no Cholesky factor.
    """
    lowered, raised = metric.clone(), metric.clone()
    lowered.diagonal().sub_(least * float(torch.linalg.matrix_norm(metric)))
    if int(torch.linalg.cholesky_ex(lowered).info):
        return None
    raised.diagonal().add_(ridge)
    return torch.cholesky_solve(left.mT, torch.linalg.cholesky(raised)).mT


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
    noise = 10 * (math.sqrt(size) * precision + size * _EPS)
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if not size or (not int(failed) and float(factor.diagonal().min()) ** 2 > noise):
        return torch.cholesky_solve((left * scale).mT, factor).mT * scale
    return times_filtered(left * scale, scaled, lambda values: (values > noise).to(values)) * scale


class Quadratic(Spectral):
    """A method that solves the problem with metrics made of the task vectors alone: no data.

    Attributes:
        anchored: whether the anchor is the sum of the task vectors; zero if not.
    """

    anchored = True

    @abstractmethod
    def factor(self, delta: Tensor) -> Tensor:
        """F_i ``[rows, in]`` of the metric C_i = F_i^T F_i of a task vector ``[out, in]``."""

    @abstractmethod
    def respond(self, values: Tensor) -> Tensor:
        """The filter, see :data:`Filter`."""

    def rational(self) -> tuple[float, float] | None:
        """``(ridge, cutoff)`` of a filter lambda / (lambda + ridge) above a cutoff; None of others.

        The cutoff is a share of the largest eigenvalue, times their number; where all lie above it
        no spectrum is needed.
        """
        return None

    @override
    def spectral(self, block: Block) -> Tensor:
        anchor = total_delta(block)
        if not self.anchored:
            anchor.zero_()
        inputs, basis = anchor.shape[1], None
        if len(block.finetuned) * len(anchor) < inputs:
            # The metrics have no more directions than their factors rows: the problem is solved in
            # these.
            rows = torch.cat([self.factor(delta) for delta in double_deltas(block)])
            basis = torch.linalg.qr(rows.mT).Q
        start = anchor if basis is None else anchor @ basis
        residual, total = sums((self._part(delta, basis) for delta in double_deltas(block)), start)
        found, rational = None, self.rational()
        if rational is not None:
            ridge, cutoff = rational
            found = times_definite_inverse(residual, total, ridge, max(cutoff, _EPS) * inputs)
        if found is None:
            found = times_filtered(residual, total, self.respond, inputs)
        return anchor + (found if basis is None else found @ basis.mT)

    def _part(self, delta: Tensor, basis: Tensor | None) -> tuple[Tensor, Tensor]:
        """delta_i C_i and C_i, in a basis ``[in, k]`` if one is given."""
        factor = self.factor(delta)
        if basis is not None:
            delta, factor = delta @ basis, factor @ basis
        metric = gram(factor)
        wide = factor.shape[0] < factor.shape[1]
        return (delta @ factor.mT) @ factor if wide else delta @ metric, metric
