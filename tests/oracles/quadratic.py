"""The quadratic methods in NumPy float64: by the singular values of stacked rows, not eigenvalues.

With C = B^T B for the factors' rows B, the minimum nearest to an anchor is least squares over the
rows, and the eigenvectors of C are the right singular vectors of B.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.linalg

from tests.oracles.spectral import Array


def solved(
    deltas: list[Array], factors: list[Array], anchor: Array, share: Callable[[Array], Array]
) -> Array:
    """From the anchor towards the minimum, in every direction by a share of its eigenvalue."""
    rows = np.vstack(factors)
    answers = np.vstack([f @ (delta - anchor).T for f, delta in zip(factors, deltas, strict=True)])
    way = np.linalg.lstsq(rows, answers, rcond=1e-7)[0].T
    _, s, directions = np.linalg.svd(rows, full_matrices=True)
    values = np.zeros(rows.shape[1])
    values[: len(s)] = np.square(s) * (s > 1e-7 * s[0])
    return anchor + (way @ directions.T * share(values)) @ directions


def unit(delta: Array) -> Array:
    length = math.sqrt(float(np.square(delta).sum()))
    return delta / length if length else delta


def wudi(deltas: list[Array], ridge: float = 0.0) -> Array:
    """The minimum with a penalty, as more rows: ridge * |tau - sum|^2 by the identity's rows."""
    anchor = np.sum(deltas, axis=0)
    rows = [unit(delta) for delta in deltas]
    answers = [f @ (delta - anchor).T for f, delta in zip(rows, deltas, strict=True)]
    rows.append(math.sqrt(ridge) * np.eye(anchor.shape[1]))
    answers.append(np.zeros((anchor.shape[1], anchor.shape[0])))
    return anchor + np.linalg.lstsq(np.vstack(rows), np.vstack(answers), rcond=1e-7)[0].T


def swudi(deltas: list[Array], time: float, rank: float) -> Array:
    def share(values: Array) -> Array:
        kept = np.arange(len(values)) < math.ceil(rank * len(values))
        return (1 - np.exp(-time * values)) * kept

    return solved(deltas, [unit(delta) for delta in deltas], np.sum(deltas, axis=0), share)


def flow(deltas: list[Array], time: float) -> Array:
    """Gradient flow of WUDI's loss (halved) from the sum of the task vectors: a matrix exponential.

    The flow of tau' = D - tau C is that of the matrix [[tau, 1]] times [[-C, 0], [D, 0]].
    """
    anchor = np.sum(deltas, axis=0)
    out, size = anchor.shape
    grams = [unit(delta).T @ unit(delta) for delta in deltas]
    generator = np.zeros((size + out, size + out))
    generator[:size, :size] = -np.sum(grams, axis=0)
    generator[size:, :size] = np.sum([d @ g for d, g in zip(deltas, grams, strict=True)], axis=0)
    return (np.hstack([anchor, np.eye(out)]) @ scipy.linalg.expm(time * generator))[:, :size]


def swudi_a(deltas: list[Array]) -> Array:
    def share(values: Array) -> Array:
        roots = np.sqrt(values)
        count = math.ceil(roots.sum() ** 2 / values.sum() - 1e-6)
        return (np.arange(len(values)) < count).astype(float)

    return solved(deltas, [unit(delta) for delta in deltas], np.sum(deltas, axis=0), share)


def actmat(deltas: list[Array], keep: float = 1.0, cutoff: float = 0.0) -> Array:
    """With the pseudo-inverse of the sum of the Gram matrices."""
    grams = []
    for delta in deltas:
        sizes = np.sort(np.abs(delta), axis=None)[::-1]
        least = sizes[max(1, round(keep * delta.size)) - 1]
        trimmed = delta * (np.abs(delta) >= least)
        grams.append(trimmed.T @ trimmed)
    size = deltas[0].shape[1]
    inverse = np.linalg.pinv(np.sum(grams, axis=0), rcond=max(cutoff * size, 1e-14 * size), hermitian=True)
    return np.sum([d @ g for d, g in zip(deltas, grams, strict=True)], axis=0) @ inverse
