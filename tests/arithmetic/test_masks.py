"""Masks against the oracle, on ties, constant and very large tensors; random masks' density."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sta_lightning.arithmetic import (
    forget_mask,
    fusion_mask,
    random_forget_mask,
    random_fusion_mask,
    rank,
    tensor_generator,
)
from sta_lightning.arithmetic import states as states_module
from sta_lightning.errors import StaError
from tests.oracles import sta as oracle

shares = st.fractions(0, 1, max_denominator=100)
# Few different values, so that ties are the rule.
tied = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1 / 3, 1e-30])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 20), p=shares)
def test_fusion_masks_are_the_oracle_s_ties_included(data: st.DataObject, n: int, p: Fraction) -> None:
    rows = data.draw(
        st.lists(st.lists(tied | st.floats(0, 1), min_size=4, max_size=4), min_size=n, max_size=n)
    )
    scores = np.array(rows, dtype=np.float64)
    wanted = np.stack(oracle.fusion_masks(list(scores), p))
    assert np.array_equal(fusion_mask(torch.from_numpy(scores), float(p)).numpy(), wanted)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(tied | st.floats(0, 1), max_size=40), p=shares)
def test_forget_masks_are_the_oracle_s_ties_included(values: list[float], p: Fraction) -> None:
    # The oracle normalises first, and rounding there can tie what differs: give it values that it
    # leaves alone.
    scores = np.array([0.0, 1.0, *values])
    assert np.array_equal(
        forget_mask(torch.from_numpy(scores), float(p)).numpy(), oracle.forget_mask(scores, p)
    )


def test_the_interpolated_threshold_would_drop_what_the_rank_keeps() -> None:
    low = 1.0
    high = float(np.nextafter(low, 2.0))
    scores = torch.tensor([[low], [high]], dtype=torch.float64)
    assert low + (high - low) * 0.7 == high  # Eq. 16 rounds onto s_{k+1}
    assert fusion_mask(scores, 0.7).tolist() == [[False], [True]]


@pytest.mark.parametrize("n", [2, 3, 6, 8, 14, 20, 101])
@pytest.mark.parametrize("p", [0.0, 0.29, 0.5, 0.7, 1.0])
def test_without_ties_exactly_n_minus_k_survive(n: int, p: float) -> None:
    columns = [torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for seed in range(30)]
    mask = fusion_mask(torch.stack(columns, dim=1).float(), p)
    assert mask.sum(dim=0).tolist() == [n - rank(n, p)] * 30


def test_equal_scores_keep_nothing_and_one_task_keeps_nothing() -> None:
    assert not fusion_mask(torch.ones(5, 3), 0.0).any()
    assert not fusion_mask(torch.rand(1, 3), 0.0).any()


def test_shapes_from_scalar_to_empty() -> None:
    assert fusion_mask(torch.tensor([1.0, 2.0]), 0.5).tolist() == [False, True]
    assert fusion_mask(torch.zeros(3, 0, 2), 0.5).shape == (3, 0, 2)
    assert forget_mask(torch.tensor(3.0), 0.0).tolist() is False
    assert forget_mask(torch.zeros(0, 4), 0.7).shape == (0, 4)
    with pytest.raises(StaError, match="shape"):
        fusion_mask(torch.zeros(0, 3), 0.5)
    with pytest.raises(StaError, match="shape"):
        fusion_mask(torch.tensor(1.0), 0.5)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_p_is_checked_even_where_nothing_is_masked(p: float) -> None:
    for call in (
        lambda: forget_mask(torch.zeros(0), p),
        lambda: fusion_mask(torch.zeros(2, 0), p),
        lambda: random_forget_mask((0,), p, torch.Generator()),
        lambda: random_fusion_mask(2, (0,), p, torch.Generator()),
    ):
        with pytest.raises(StaError, match="p must be"):
            call()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_have_no_rank_are_refused(bad: float) -> None:
    with pytest.raises(StaError, match="NaN or Inf"):
        fusion_mask(torch.tensor([[1.0], [bad]]), 0.5)
    with pytest.raises(StaError, match="NaN or Inf"):
        forget_mask(torch.tensor([1.0, bad]), 0.5)


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.rand(6, 7, 11, generator=torch.Generator().manual_seed(0))
    whole = fusion_mask(scores, 0.7)
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 5)
    assert torch.equal(fusion_mask(scores, 0.7), whole)
    assert torch.equal(fusion_mask(scores.transpose(1, 2), 0.7), whole.transpose(1, 2))


def test_forgetting_is_exact_above_two_to_the_24_entries() -> None:
    size = 2**24 + 3
    # Consecutive floats as bit patterns: all different, which arange in float32 is not at this
    # size.
    importance = (torch.arange(size, dtype=torch.int32) + 0x3F800000).view(torch.float32).flip(0)
    mask = forget_mask(importance, 0.7)
    kept = size - rank(size, 0.7)
    assert bool(mask[:kept].all())
    assert not bool(mask[kept:].any())


def test_forgetting_drops_ties_at_the_threshold() -> None:
    assert forget_mask(torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0]), 0.5).tolist() == [False] * 4 + [True]
    assert not forget_mask(torch.full((9,), 2.0), 0.0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_of_the_importance_does_not_matter(dtype: torch.dtype) -> None:
    values = torch.randperm(64, generator=torch.Generator().manual_seed(3)).reshape(2, 32)
    assert torch.equal(forget_mask(values.to(dtype), 0.7), forget_mask(values.float(), 0.7))
    assert torch.equal(fusion_mask(values.to(dtype), 0.7), fusion_mask(values.float(), 0.7))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 20), p=shares, seed=st.integers(0, 99), shape=st.sampled_from([(), (0,), (7,), (3, 5)])
)
def test_random_fusion_masks_have_exactly_the_density(
    n: int, p: Fraction, seed: int, shape: tuple[int, ...]
) -> None:
    mask = random_fusion_mask(n, shape, float(p), tensor_generator(seed, "w"))
    assert mask.shape == (n, *shape)
    assert bool((mask.sum(dim=0) == n - rank(n, float(p))).all())


@settings(max_examples=40, deadline=None)
@given(p=shares, seed=st.integers(0, 99), shape=st.sampled_from([(), (0,), (7,), (3, 5)]))
def test_random_forget_masks_have_exactly_the_density(p: Fraction, seed: int, shape: tuple[int, ...]) -> None:
    mask = random_forget_mask(shape, float(p), tensor_generator(seed, "w"))
    size = mask.numel()
    assert mask.shape == shape
    assert int(mask.sum()) == (size - rank(size, float(p)) if size else 0)


def test_random_masks_choose_every_subset_equally_often() -> None:
    mask = random_fusion_mask(4, (60_000,), 0.5, tensor_generator(0, "w"))  # 2 of 4: six subsets
    code = (mask.long() * torch.tensor([[1], [2], [4], [8]])).sum(dim=0)
    counts = torch.bincount(code, minlength=16)[[3, 5, 6, 9, 10, 12]]
    assert int(counts.sum()) == 60_000
    assert float((counts - 10_000).abs().max()) < 500  # more than five standard deviations
    flat = random_forget_mask((60_000,), 0.5, tensor_generator(1, "w"))
    assert abs(int(flat[:30_000].sum()) - 15_000) < 500


def test_the_generator_depends_on_seed_and_name_alone() -> None:
    def draw(seed: int, name: str) -> list[float]:
        return torch.rand(4, generator=tensor_generator(seed, name)).tolist()

    assert draw(0, "a") == draw(0, "a")
    assert len({tuple(draw(seed, name)) for seed in (0, 1) for name in ("a", "b")}) == 4
    state = torch.get_rng_state()
    draw(0, "a")
    assert torch.equal(state, torch.get_rng_state())
