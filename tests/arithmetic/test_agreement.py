"""The agreement of two importances against scipy, and where there is no order."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from sta_lightning.arithmetic.agreement import Agreement, importance_agreement, mean_agreement
from sta_lightning.errors import StaError


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40),
    p=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
)
def test_it_is_scipy_s_with_ties(pairs: list[tuple[int, int]], p: float) -> None:
    first, second = (torch.tensor(values, dtype=torch.float32) for values in zip(*pairs, strict=True))
    found = importance_agreement({"w": first}, {"w": second}, p=p)["w"]
    if first.unique().numel() > 1 and second.unique().numel() > 1:
        assert found.spearman == pytest.approx(float(spearmanr(first, second).statistic), abs=1e-12)
    # Eq. 14 to 18 within the tensor: above the k-th smallest, k = floor(1 + (n - 1) p).
    k = int(1 + (len(pairs) - 1) * p + 1e-9)
    masks = [values.numpy() > np.sort(values.numpy())[k - 1] for values in (first, second)]
    assert found.kept == pytest.approx(float((masks[0] == masks[1]).mean()))
    assert found.size == len(pairs)


def test_an_order_alone_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = {"w": torch.randperm(600, generator=generator).reshape(30, 20).float(), "b": torch.arange(7.0)}
    found = importance_agreement(exact, {name: 3 * tensor + 5 for name, tensor in exact.items()})
    for agreement in found.values():
        assert agreement.spearman == pytest.approx(1)
        assert agreement.kept == 1
    assert importance_agreement(exact, {name: -tensor for name, tensor in exact.items()})[
        "w"
    ].spearman == pytest.approx(-1)


def test_a_large_tensor_is_sampled_at_the_same_places() -> None:
    torch.manual_seed(0)
    exact = torch.rand(50_000)
    near = exact + 0.1 * torch.rand(50_000)
    everything = importance_agreement({"w": exact}, {"w": near}, entries=100_000)["w"]
    some = importance_agreement({"w": exact}, {"w": near}, entries=5_000, seed=1)["w"]
    assert everything.spearman == pytest.approx(float(spearmanr(exact, near).statistic), abs=1e-9)
    assert some.spearman == pytest.approx(everything.spearman, abs=0.01)
    assert some.kept == pytest.approx(everything.kept, abs=0.03)
    assert some != everything
    assert (
        some
        == importance_agreement({"w": exact, "v": exact}, {"w": near, "v": near}, entries=5_000, seed=1)["w"]
    )
    assert some.size == 50_000


def test_without_an_order() -> None:
    flat, slope = torch.ones(4), torch.arange(4.0)
    found = importance_agreement(
        {"a": flat, "b": flat, "c": torch.tensor(1.0)}, {"a": flat, "b": slope, "c": torch.tensor(2.0)}
    )
    assert (found["a"].spearman, found["b"].spearman, found["c"].spearman) == (1, 0, 1)
    assert "d" not in importance_agreement({"d": torch.empty(0)}, {"d": torch.empty(0)})


def test_the_mean_counts_entries() -> None:
    found = mean_agreement({"a": Agreement(1.0, 0.5, 1), "b": Agreement(0.0, 1.0, 3)})
    assert found == Agreement(0.25, 0.875, 4)
    assert mean_agreement(
        {"a": Agreement(0.2, 0.4, 2), "b": Agreement(0.4, 0.6, 2)}
    ).spearman == pytest.approx(fmean([0.2, 0.4]))


def test_what_cannot_be_compared() -> None:
    one = {"w": torch.rand(3)}
    with pytest.raises(StaError, match="shapes differ"):
        importance_agreement(one, {"w": torch.rand(4)})
    with pytest.raises(StaError, match="NaN or Inf"):
        importance_agreement(one, {"w": torch.tensor([1.0, float("nan"), 2.0])})
    with pytest.raises(StaError, match="p must be a number"):
        importance_agreement(one, one, p=2)
    with pytest.raises(StaError, match="entries must be at least 2"):
        importance_agreement(one, one, entries=1)
    with pytest.raises(StaError, match="no tensor"):
        mean_agreement({})
