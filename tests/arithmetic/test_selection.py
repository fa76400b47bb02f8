"""The rank of Eq. 15 and the selection of the k-th smallest."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sta_lightning.arithmetic.selection import (
    kth_by_digits,
    kth_smallest,
    kth_smallest_entry,
    rank,
    selection_network,
)
from sta_lightning.errors import StaError


@pytest.mark.parametrize(("n", "kept"), [(2, 1), (3, 1), (6, 2), (8, 3), (14, 4), (20, 6)])
def test_the_paper_s_p_keeps_what_the_specification_says(n: int, kept: int) -> None:
    assert n - rank(n, 0.7) == kept


def test_a_product_that_is_an_integer_up_to_rounding_counts_as_it() -> None:
    assert 100 * 0.29 < 29  # what a plain floor falls over
    assert rank(101, 0.29) == 30
    assert rank(4, 1 / 3) == 2
    assert rank(11, 0.1 + 0.2) == 4
    assert rank(11, 1 - 0.9) == 2
    assert rank(2**25 + 1, 0.7) == math.floor(1 + Fraction(7, 10) * 2**25)


def test_a_p_just_below_an_integer_is_not_rounded_up() -> None:
    assert rank(11, 0.3 - 1e-9) == 3
    assert rank(2, 1 - 1e-9) == 1


@given(n=st.integers(1, 3000), percent=st.integers(0, 1000))
def test_rank_is_the_exact_floor(n: int, percent: int) -> None:
    p = Fraction(percent, 1000)
    assert rank(n, float(p)) == math.floor(1 + (n - 1) * p)


@given(n=st.integers(1, 100), p=st.floats(0, 1), q=st.floats(0, 1))
def test_rank_lies_in_its_range_and_grows_with_p(n: int, p: float, q: float) -> None:
    low, high = sorted((p, q))
    assert 1 <= rank(n, low) <= rank(n, high) <= n


@pytest.mark.parametrize("p", [-0.01, 1.3, math.nan, math.inf, "0.7", None, True])
def test_a_p_outside_its_range_is_refused_with_its_value(p: object) -> None:
    with pytest.raises(StaError, match=r"p must be .*" + str(p)):
        rank(6, p)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [0, -1])
def test_a_quantile_of_nothing_is_refused(n: int) -> None:
    with pytest.raises(StaError, match="at least one value"):
        rank(n, 0.5)


@pytest.mark.parametrize("n", range(1, 11))
def test_the_network_selects_every_rank_of_zeros_and_ones(n: int) -> None:
    # The 0-1 principle: minima and maxima that are right on every 0-1 input are right on every
    # input.
    inputs = torch.tensor(list(itertools.product((0, 1), repeat=n))).T
    ordered = inputs.sort(dim=0).values
    for k in range(1, n + 1):
        assert torch.equal(kth_smallest(list(inputs), k), ordered[k - 1])


@pytest.mark.parametrize("n", [13, 20, 33, 64])
def test_the_network_selects_among_many(n: int) -> None:
    rows = torch.rand(n, 50, generator=torch.Generator().manual_seed(n))
    before = rows.clone()
    ordered = rows.sort(dim=0).values
    for k in {1, 2, n // 2, rank(n, 0.7), n}:
        assert torch.equal(kth_smallest(list(rows), k), ordered[k - 1])
    assert torch.equal(rows, before)


def test_the_network_drops_what_the_rank_does_not_need() -> None:
    outputs = sum(low + high for _, _, low, high in selection_network(6, rank(6, 0.7)))
    assert outputs < sum(
        2 for _ in range(12)
    )  # Batcher sorts six with twelve comparators of two outputs each
    assert selection_network(1, 1) == ()


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int32, torch.uint8])
def test_the_kth_entry_of_a_tensor(dtype: torch.dtype) -> None:
    values = torch.tensor([[5, 1, 3], [3, 2, 0]]).to(dtype)
    assert [int(kth_smallest_entry(values, k)) for k in range(1, 7)] == [0, 1, 2, 3, 3, 5]


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_kth_entry_is_that_of_a_sort(dtype: torch.dtype, data: st.DataObject) -> None:
    largest = float(torch.finfo(dtype).max)
    drawn = data.draw(st.lists(st.floats(-largest, largest), min_size=1, max_size=30))
    values = torch.tensor(drawn, dtype=torch.float64).to(dtype)
    values = values[values.isfinite()]
    for k, wanted in enumerate(values.sort().values, start=1):
        assert kth_smallest_entry(values, k) == wanted
    for k in {1, (len(values) + 1) // 2, len(values)} if len(values) else ():
        wide = values if dtype == torch.float64 else values.float()
        assert kth_by_digits(wide, k) == wide.sort().values[k - 1]


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30))
def test_the_kth_integer_is_that_of_a_sort(values: list[int]) -> None:
    tensor = torch.tensor(values, dtype=torch.int64)
    assert [int(kth_smallest_entry(tensor, k + 1)) for k in range(len(values))] == sorted(values)
    for k in {1, (len(values) + 1) // 2, len(values)}:
        assert int(kth_by_digits(tensor, k)) == sorted(values)[k - 1]


def test_the_kth_entry_of_both_signs_and_smallest_numbers() -> None:
    values = torch.tensor([1e-45, -1e-45, 0.0, -0.0, 3.4e38, -3.4e38, 1.0, -1.0])
    for select in (kth_smallest_entry, kth_by_digits):
        assert [float(select(values, k)) for k in range(1, 9)] == values.sort().values.tolist()


def test_the_kth_entry_of_booleans_and_float8() -> None:
    assert int(kth_smallest_entry(torch.tensor([True, False, True]), 2)) == 1
    assert float(kth_smallest_entry(torch.tensor([4.0, 2.0, 1.0]).to(torch.float8_e4m3fn), 2)) == 2.0


@pytest.mark.parametrize("order", ["ascending", "descending", "equal", "organ pipe", "random"])
def test_no_order_of_the_entries_is_a_bad_one(order: str) -> None:
    # torch.kthvalue needs minutes for the descending one.
    size = 400_000
    rising = torch.arange(size, dtype=torch.float32)
    values = {
        "ascending": rising,
        "descending": rising.flip(0),
        "equal": torch.ones(size),
        "organ pipe": torch.minimum(rising, rising.flip(0)),
        "random": torch.rand(size, generator=torch.Generator().manual_seed(0)),
    }[order]
    ordered = values.sort().values
    for k in (1, rank(size, 0.7), size):
        assert kth_smallest_entry(values, k) == ordered[k - 1]
