"""Multi-head attention as on paper, in float64 NumPy, with the inputs of its projections."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def mean_outer(rows: Array) -> Array:
    """The mean of x xᵀ over the rows of ``[..., in]``, one row at a time."""
    flat = rows.reshape(-1, rows.shape[-1])
    total = np.zeros((flat.shape[1],) * 2)
    for row in flat:
        total += np.outer(row, row)
    return total / len(flat)


def attention(x: Array, weights: Array, bias: Array, heads: int, mask: Array | None = None) -> Array:
    """What goes into the output projection of self-attention.

    Args:
        x: ``[N, L, E]``.
        weights: those of queries, keys and values, ``[3 E, E]``.
        bias: ``[3 E]``.
        heads: how many.
        mask: added to the scores, ``[L, L]``.

    Returns:
        ``[N, L, E]``.
    """
    samples, length, width = x.shape
    size = width // heads
    mixed = np.zeros_like(x)
    for n in range(samples):
        q, k, v = np.split(x[n] @ weights.T + bias, 3, axis=1)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / np.sqrt(size)
            if mask is not None:
                scores = scores + mask
            scores = np.exp(scores - scores.max(1, keepdims=True))
            mixed[n, :, part] = scores / scores.sum(1, keepdims=True) @ v[:, part]
    assert mixed.shape == (samples, length, width)
    return mixed
