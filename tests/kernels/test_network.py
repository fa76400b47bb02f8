"""Networks that select several order statistics at once."""

import itertools
import random

import pytest

from sta_lightning.kernels import selection_network


def selected(values: list[int], *ranks: int) -> list[int]:
    rows = list(values)
    for low, high, keep_minimum, keep_maximum in selection_network(len(rows), *ranks):
        a, b = rows[low], rows[high]
        # What is not kept must not be read again.
        rows[low] = min(a, b) if keep_minimum else None  # type: ignore[call-overload]
        rows[high] = max(a, b) if keep_maximum else None  # type: ignore[call-overload]
    return [rows[k - 1] for k in ranks]


@pytest.mark.parametrize("n", range(2, 9))
def test_two_neighbours_of_all_zeros_and_ones(n: int) -> None:
    # The 0-1 principle: minima and maxima that are right on every 0-1 input are right on every
    # input.
    for values in itertools.product((0, 1), repeat=n):
        ordered = sorted(values)
        for k in range(1, n):
            assert selected(list(values), k, k + 1) == ordered[k - 1 : k + 1]


@pytest.mark.parametrize("n", [1, 2, 3, 6, 20, 33, 64, 101])
def test_any_ranks_of_any_values(n: int) -> None:
    drawn = random.Random(n)
    for _ in range(20):
        values = [drawn.randrange(n) for _ in range(n)]  # with ties
        ranks = sorted(drawn.sample(range(1, n + 1), min(n, drawn.randint(1, 4))))
        assert selected(values, *ranks) == [sorted(values)[k - 1] for k in ranks]


@pytest.mark.parametrize("n", [2, 3, 6, 20, 64])
def test_every_rank_at_once_sorts(n: int) -> None:
    values = random.Random(n).sample(range(1000), n)
    assert selected(values, *range(1, n + 1)) == sorted(values)


def test_a_second_rank_costs_little_and_nothing_is_done_in_vain() -> None:
    one, two, every = (selection_network(20, *ranks) for ranks in ((14,), (14, 15), range(1, 21)))
    assert len(one) <= len(two) <= len(every)
    for steps in (one, two, every):
        assert all(keep_minimum or keep_maximum for _, _, keep_minimum, keep_maximum in steps)
        assert all(0 <= low < high < 20 for low, high, _, _ in steps)
