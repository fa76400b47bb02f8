"""Selection networks: order statistics by minima and maxima alone."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=256)
def selection_network(n: int, *ranks: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """The comparators that some order statistics of n values depend on.

    They are taken from Batcher's merge exchange (Knuth, The Art of Computer Programming, 5.2.2,
    algorithm M).

    Args:
        n: number of rows, at least 1.
        ranks: the ranks wanted, each in 1..n.

    Returns:
        Steps ``(low, high, keep_minimum, keep_maximum)``: row ``low`` becomes the minimum of the
        two rows, row ``high`` the maximum, each only if a later step needs it. Afterwards row ``k -
        1`` is the k-th smallest for every rank k.
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
    needed, steps = {k - 1 for k in ranks}, []
    for low, high in reversed(comparators):
        keep_minimum, keep_maximum = low in needed, high in needed
        if keep_minimum or keep_maximum:
            steps.append((low, high, keep_minimum, keep_maximum))
            needed |= {low, high}
    return tuple(reversed(steps))
