"""Sampling error of accuracies that are measured on a limited number of test images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Bits = np.ndarray[Any, np.dtype[np.bool_]]
"""Whether each image was classified rightly."""


def standard_error(accuracy: Mapping[str, float], images: Mapping[str, int]) -> float:
    """Standard error of the average accuracy over tasks, in points.

    Each task's accuracy (percent) is a proportion of its own independent images: the variances
    a(1 - a)/n add up.
    """
    variance = 0.0
    for task, percent in accuracy.items():
        share = percent / 100
        variance += share * (1 - share) / images[task]
    return 100 * math.sqrt(variance) / len(accuracy)


def paired_difference(first: Mapping[str, Bits], second: Mapping[str, Bits]) -> tuple[float, float]:
    """Difference of two average accuracies on the same images, and its standard error: points.

    Image by image the difference is -1, 0 or 1; what both methods get right or wrong together
    cancels.

    Args:
        first: by task.
        second: the same images under the other method.
    """
    difference, variance = 0.0, 0.0
    for task, bits in first.items():
        change = bits.astype(np.float64) - second[task].astype(np.float64)
        difference += float(change.mean())
        variance += float(change.var()) / len(change)
    return 100 * difference / len(first), 100 * math.sqrt(variance) / len(first)


def verdict(difference: float, error: float) -> str:
    """What a difference in points says, given its standard error."""
    if abs(difference) > 2 * error:
        return "more than two standard errors"
    if abs(difference) > error:
        return "between one and two standard errors: a hint, no proof"
    return "within one standard error: no difference was measured"
