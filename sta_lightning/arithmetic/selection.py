"""One order statistic, exactly: the k of Eq. 15, the k-th smallest of N rows or of one tensor."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sta_lightning.arithmetic.states import pieces
from sta_lightning.errors import StaError
from sta_lightning.kernels import selection_network
from sta_lightning.ranges import SHARE


def rank(n: int, p: float) -> int:
    """The rank k = floor(1 + (n - 1) p) of the threshold among n sorted values (Eq. 15).

    A product (n - 1) p that is an integer up to rounding counts as that integer: 100 * 0.29 is
    28.999999999999996 in floating point, and k is 30 all the same.

    Args:
        n: how many values there are, at least 1.
        p: quantile in [0, 1].

    Returns:
        k in 1..n, counted from 1. Without ties n - k values are strictly greater than the k-th
        smallest.

    Raises:
        StaError: if ``p`` is no number in [0, 1] or ``n`` is no positive integer.
    """
    p = SHARE.check(p)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise StaError(f"a quantile needs at least one value, and was asked of {n!r}.")
    product = (n - 1) * p
    nearest = round(product)
    # p itself may be off by a few units in the last place (1 - 0.3, 0.1 + 0.2); n - 1 multiplies
    # that error.
    if abs(product - nearest) <= 4 * sys.float_info.epsilon * n:
        return 1 + nearest
    return 1 + math.floor(product)


def kth_smallest(rows: Sequence[Tensor], k: int) -> Tensor:
    """The k-th smallest of N tensors at every position: s_k of Eq. 14, by minima and maxima alone.

    Args:
        rows: N tensors of one shape and type, none of them with NaN; they are not changed.
        k: rank, 1..N.

    Returns:
        A tensor of that shape; at every position one of the N values, bit for bit.
    """
    values = list(rows)
    for low, high, keep_minimum, keep_maximum in selection_network(len(values), k):
        a, b = values[low], values[high]
        if keep_minimum:
            values[low] = torch.minimum(a, b)
        if keep_maximum:
            values[high] = torch.maximum(a, b)
    return values[k - 1]


def kth_smallest_entry(tensor: Tensor, k: int) -> Tensor:
    """The k-th smallest entry of one tensor of any size, by counting digits.

    Linear in the size whatever the order of the entries and however many tie, which
    ``torch.kthvalue`` is not: on descending values it is quadratic. Unlike ``torch.quantile`` it
    rounds nothing and refuses no size. Works on a piece at a time.

    Args:
        tensor: at least one entry, no NaN, any shape and real type.
        k: rank, 1..numel.

    Returns:
        A tensor of shape ``[]``: float32 or float64 for floating-point entries, int64 for others.
    """
    flat = tensor.detach().reshape(-1)
    if not flat.is_floating_point():
        flat = flat.to(torch.int64)
    elif flat.dtype != torch.float64:
        flat = flat.to(torch.float32)
    return flat.sort().values[k - 1] if flat.numel() <= SMALL else kth_by_digits(flat, k)


def largest_entries(tensor: Tensor, count: int) -> Tensor:
    """So many entries of the largest magnitudes, 1 or more, and all that tie; zero elsewhere."""
    if count >= tensor.numel():
        return tensor
    sizes = tensor.abs()
    return tensor.where(sizes >= kth_smallest_entry(sizes, tensor.numel() - count + 1), 0.0)


Counts = npt.NDArray[np.int64]

_DIGIT = 16
_HALF = 1 << (_DIGIT - 1)
_MASK = (1 << _DIGIT) - 1
SMALL = 1 << 15  # below, sorting costs less than counting into 65 536 bins


def kth_by_digits(flat: Tensor, k: int) -> Tensor:
    """:func:`kth_smallest_entry` of one dimension in float32, float64 or int64, without sorting."""

    def count(shift: int, prefix: int) -> Counts:
        total = np.zeros(1 << _DIGIT, dtype=np.int64)
        for piece in pieces(flat):
            total += count_digits(flat[piece], shift, prefix)
        return total

    return kth_from_counts(count, k, flat.dtype).to(flat.device)


def kth_from_counts(count: Callable[[int, int], Counts], k: int, dtype: torch.dtype) -> Tensor:
    """The k-th smallest of some entries, shape ``[]`` on the CPU, digit by digit from the highest.

    Args:
        count: (shift, prefix) -> :func:`count_digits` summed over all entries.
        k: rank, 1..number of entries.
        dtype: float32, float64 or int64.
    """
    width = 8 * dtype.itemsize
    prefix, left = 0, k
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        reached = np.cumsum(count(shift, prefix))
        digit = int(np.searchsorted(reached, left))
        left -= int(reached[digit - 1]) if digit else 0
        prefix = digit - _HALF if shift == width - _DIGIT else prefix << _DIGIT | digit
    key = torch.tensor(prefix, dtype=torch.int32 if width == 32 else torch.int64, device="cpu")
    return _ordered(key.view(dtype)).view(dtype) if dtype.is_floating_point else key


def count_digits(values: Tensor, shift: int, prefix: int) -> Counts:
    """How often each value of a 16-bit digit of the ordered bits occurs, int64 ``[65536]``.

    Args:
        values: one dimension, float32, float64 or int64, no NaN.
        shift: the digit's place in bits; the highest carries the sign and is counted from -32768.
        prefix: all higher digits together; entries with others are left out. Not read for the
            highest digit.
    """
    keys = _ordered(values)
    if shift == 8 * values.element_size() - _DIGIT:
        counts = torch.bincount((keys >> shift) + _HALF, minlength=1 << _DIGIT)
    else:
        keys = keys[keys >> (shift + _DIGIT) == prefix]
        counts = torch.bincount((keys >> shift) & _MASK, minlength=1 << _DIGIT)
    return cast(Counts, counts.cpu().numpy())


def all_finite(counts: Counts, dtype: torch.dtype) -> bool:
    """Whether :func:`count_digits` of the highest digit met neither NaN nor infinity."""
    infinite = _HALF - (0x10 if dtype == torch.float64 else 0x80)
    return not (counts[: _HALF - infinite].any() or counts[_HALF + infinite :].any())


def _ordered(values: Tensor) -> Tensor:
    """Integers in the order of the values: of a negative one all bits but the sign are flipped.

    Its own inverse on the bits.
    """
    if not values.is_floating_point():
        return values
    bits = values.view(torch.int32 if values.element_size() == 4 else torch.int64)
    low = torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, bits ^ low, bits)
