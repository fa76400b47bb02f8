"""Eq. 13-20 as they are written, in NumPy float64, entry by entry: slow, and right by inspection.

Sums and interpolations whose rounding could decide a comparison are exact rational numbers. ``p``
is a fraction, so that (N - 1) p has no rounding either.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = dict[str, Array]


def normalised(importance: Array) -> Array:
    """Eq. 13; a tensor whose maximum is its minimum goes to zero."""
    values = np.asarray(importance, dtype=np.float64)
    if values.size == 0 or values.max() == values.min():
        return np.zeros_like(values)
    return (values - values.min()) / (values.max() - values.min())


def quantile(values: list[float], p: Fraction) -> Fraction:
    """Eq. 14-16: sort, and interpolate linearly at L_p = 1 + (N - 1) p, counted from 1."""
    ordered = sorted(Fraction(float(value)) for value in values)
    level = 1 + (len(ordered) - 1) * p
    k = math.floor(level)
    if k == len(ordered):
        return ordered[-1]
    return ordered[k - 1] + (ordered[k] - ordered[k - 1]) * (level - k)


def fusion_masks(scores: list[Array], p: Fraction) -> list[NDArray[np.bool_]]:
    """Eq. 17: at every position, which of the N scores is strictly greater than their quantile."""
    masks = [np.zeros(score.shape, dtype=bool) for score in scores]
    for position in np.ndindex(scores[0].shape):
        values = [float(score[position]) for score in scores]
        threshold = quantile(values, p)
        for mask, value in zip(masks, values, strict=True):
            mask[position] = Fraction(value) > threshold
    return masks


def forget_mask(importance: Array, p: Fraction) -> NDArray[np.bool_]:
    """Section 3.4: the quantile over the entries of one tensor."""
    scores = normalised(importance)
    mask = np.zeros(scores.shape, dtype=bool)
    if scores.size:
        threshold = quantile([float(value) for value in scores.reshape(-1)], p)
        for position in np.ndindex(scores.shape):
            mask[position] = Fraction(float(scores[position])) > threshold
    return mask


def fuse(pretrained: State, finetuned: dict[str, State], importance: dict[str, State], p: Fraction) -> State:
    """Eq. 18 and 19."""
    result = {}
    for name, base in pretrained.items():
        tasks = list(finetuned)
        masks = fusion_masks([normalised(importance[task][name]) for task in tasks], p)
        total = np.zeros_like(base)
        for task, mask in zip(tasks, masks, strict=True):
            total = total + mask * (finetuned[task][name] - base)
        result[name] = base + total
    return result


def forget(model: State, pretrained: State, finetuned: State, importance: State, p: Fraction) -> State:
    """Eq. 20."""
    return {
        name: base - forget_mask(importance[name], p) * (finetuned[name] - pretrained[name])
        for name, base in model.items()
    }
