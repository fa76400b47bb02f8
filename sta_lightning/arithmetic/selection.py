"""One order statistic, exactly: the k of Eq. 15 and the k-th smallest of N rows or of one tensor."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sta_lightning.arithmetic.checks import check_share
from sta_lightning.arithmetic.states import pieces
from sta_lightning.errors import StaError


def rank(n: int, p: float) -> int:
    """The rank k = floor(L_p), L_p = 1 + (n - 1) p, of the threshold among n sorted values (Eq. 15).

    A product (n - 1) p that is an integer up to rounding counts as that integer: 100 * 0.29 is
    28.999999999999996 in floating point, and k is 30 all the same.

    Args:
        n: how many values there are, at least 1.
        p: quantile in [0, 1].

    Returns:
        k in 1..n, counted from 1. Without ties n - k values are strictly greater than the k-th smallest.

    Raises:
        StaError: if ``p`` is no number in [0, 1] or ``n`` is no positive integer.
    """
    p = check_share(p)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise StaError(f"a quantile needs at least one value, and was asked of {n!r}.")
    product = (n - 1) * p
    nearest = round(product)
    # p itself may be off by a few units in the last place (1 - 0.3, 0.1 + 0.2); n - 1 multiplies that error.
    if abs(product - nearest) <= 4 * sys.float_info.epsilon * n:
        return 1 + nearest
    return 1 + math.floor(product)


@lru_cache(maxsize=256)
def selection_network(n: int, k: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """The comparators that the k-th smallest of n depends on.

    They are taken from Batcher's merge exchange (Knuth, The Art of Computer Programming, 5.2.2, algorithm M).

    Args:
        n: number of rows, at least 1.
        k: rank wanted, 1..n.

    Returns:
        Steps ``(low, high, keep_minimum, keep_maximum)``: row ``low`` becomes the minimum of the two rows,
        row ``high`` the maximum, each only if a later step needs it. Afterwards row ``k - 1`` is the k-th
        smallest.
    """
    comparators: list[tuple[int, int]] = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            comparators.extend((i, i + d) for i in range(n - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    needed, steps = {k - 1}, []
    for low, high in reversed(comparators):
        keep_minimum, keep_maximum = low in needed, high in needed
        if keep_minimum or keep_maximum:
            steps.append((low, high, keep_minimum, keep_maximum))
            needed |= {low, high}
    return tuple(reversed(steps))


def kth_smallest(rows: Sequence[Tensor], k: int) -> Tensor:
    """The k-th smallest of N tensors at every position: s_k of Eq. 14, by minima and maxima alone.

    Args:
        rows: N tensors of one shape and type, none of them with NaN. They are not changed and need not be
            stacked.
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

    Linear in the size whatever the order of the entries and however many tie, which ``torch.kthvalue`` is not: on
    descending values it is quadratic. Unlike ``torch.quantile`` it rounds nothing and refuses no size. Works on a
    piece at a time.

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
    return flat.sort().values[k - 1] if flat.numel() <= _SMALL else kth_by_digits(flat, k)


_DIGIT = 16
_HALF = 1 << (_DIGIT - 1)
_MASK = (1 << _DIGIT) - 1
_SMALL = 1 << 15  # below, sorting costs less than counting into 65 536 bins


def kth_by_digits(flat: Tensor, k: int) -> Tensor:
    """:func:`kth_smallest_entry` of one dimension in float32, float64 or int64: digit by digit, the highest first.

    One pass counts how often each value of a digit occurs among the entries that have the digits found so far.
    """
    width = 8 * flat.element_size()
    prefix, left = 0, k
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        top = shift == width - _DIGIT
        counts = torch.zeros(1 << _DIGIT, dtype=torch.int64, device=flat.device)
        for piece in pieces(flat):
            keys = _ordered(flat[piece])
            if not top:
                keys = keys[keys >> (shift + _DIGIT) == prefix]
            # The highest digit carries the sign.
            digits = (keys >> shift) + _HALF if top else (keys >> shift) & _MASK
            counts += torch.bincount(digits, minlength=1 << _DIGIT)
        reached = counts.cumsum(0).cpu()
        digit = int(torch.searchsorted(reached, left))
        left -= int(reached[digit - 1]) if digit else 0
        prefix = digit - _HALF if top else prefix << _DIGIT | digit
    key = torch.tensor(prefix, dtype=torch.int32 if width == 32 else torch.int64, device="cpu")
    value = _ordered(key.view(flat.dtype)).view(flat.dtype) if flat.is_floating_point() else key
    return value.to(flat.device)


def _ordered(values: Tensor) -> Tensor:
    """Integers in the order of the values: of a negative number all bits but the sign are turned over.

    Its own inverse on the bits.
    """
    if not values.is_floating_point():
        return values
    bits = values.view(torch.int32 if values.element_size() == 4 else torch.int64)
    low = torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, bits ^ low, bits)
