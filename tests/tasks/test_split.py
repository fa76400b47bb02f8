from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sta_lightning.errors import StaError
from sta_lightning.tasks import limited_indices, split_indices


@given(st.integers(2, 3000), st.integers(0, 2**31))
def test_split_is_a_partition_of_the_stated_size(n: int, seed: int) -> None:
    train, validation = split_indices(n, seed=seed)
    assert sorted([*train, *validation]) == list(range(n))
    assert len(validation) == max(1, min(n // 10, 5000))
    assert train == sorted(train)


def test_paper_rule_for_large_sets() -> None:
    train, validation = split_indices(60000)
    assert (len(train), len(validation)) == (55000, 5000)


def test_split_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    first = split_indices(100, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert split_indices(100, seed=1) == first
    assert split_indices(100, seed=2) != first


@given(st.integers(1, 500), st.integers(1, 600), st.integers(1, 600))
def test_a_smaller_limit_chooses_among_a_larger_ones(n: int, small: int, large: int) -> None:
    small, large = sorted((small, large))
    few, many = limited_indices(n, small), limited_indices(n, large)
    assert len(few) == min(n, small)
    assert set(few) <= set(many) <= set(range(n))
    assert few == sorted(set(few))


def test_no_limit_keeps_all() -> None:
    assert limited_indices(7, None) == list(range(7))


def test_mistakes_are_refused() -> None:
    with pytest.raises(StaError, match="1 images"):
        split_indices(1)
    with pytest.raises(StaError, match=r"share of 1\.5"):
        split_indices(10, fraction=1.5)
    with pytest.raises(StaError, match="limit of 0"):
        limited_indices(10, 0)
