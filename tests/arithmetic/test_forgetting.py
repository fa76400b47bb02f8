"""Forgetting (Eq. 20): the oracle, its properties, and what is refused."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta_lightning.arithmetic import forget, rank, unlearn
from sta_lightning.arithmetic.selection import SMALL
from sta_lightning.errors import StaError
from tests.oracles import sta as oracle


def floats(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in state.items() if value.is_floating_point()}


@pytest.mark.parametrize(
    "p", [Fraction(0), Fraction(29, 100), Fraction(1, 2), Fraction(7, 10), Fraction(1)], ids=str
)
@pytest.mark.parametrize("seed", range(4))
def test_forget_is_the_oracle(suite, seed: int, p: Fraction) -> None:
    s = suite(2, seed=seed)
    model, finetuned, scores = s.finetuned["task1"], s.finetuned["task0"], s.importance["task0"]
    got = forget(model, s.pretrained, finetuned, scores, p=float(p))
    wanted = oracle.forget(floats(model), floats(s.pretrained), floats(finetuned), floats(scores), p)
    assert list(got) == list(model)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name].numpy(), value, rtol=0, atol=1e-6, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, 2.0]) | st.floats(0, 1e6, width=32), max_size=30),
    p=st.fractions(0, 1, max_denominator=30),
)
def test_masks_are_the_oracle_s_with_ties(values: list[float], p: Fraction) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    base = {"w": torch.zeros(len(values))}
    got = forget(base, base, {"w": torch.ones(len(values))}, {"w": scores}, p=float(p))["w"]
    # Exact values instead of Eq. 13, whose rounding may tie what differs: it is monotone and
    # changes nothing.
    exact = [Fraction(value) for value in scores.tolist()]
    threshold = oracle.quantile(scores.tolist(), p) if values else Fraction(0)
    assert got.tolist() == [-float(value > threshold) for value in exact]


def test_without_ties_numel_minus_k_entries_go(suite) -> None:
    base = {"w": torch.zeros(7, 9)}
    scores = {"w": torch.randperm(63, generator=torch.Generator().manual_seed(0)).reshape(7, 9).float()}
    for p in (0.0, 0.29, 0.7, 1.0):
        result = unlearn("sta", base, base, {"w": torch.ones(7, 9)}, scores, p=p, task="digits")
        assert int(-result.weights["w"].sum()) == 63 - rank(63, p)
        assert result.kept["w"]["digits"] == pytest.approx((63 - rank(63, p)) / 63)


def test_a_monotone_change_of_the_importance_changes_nothing(suite) -> None:
    s = suite(2)
    finetuned, scores = s.finetuned["task0"], s.importance["task0"]
    first = forget(s.pretrained, s.pretrained, finetuned, scores)
    second = forget(
        s.pretrained, s.pretrained, finetuned, {name: 3 * value + 1 for name, value in scores.items()}
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_p_one_and_zero_vectors_change_no_bit(suite) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        s = suite(2, dtype=dtype)
        model, scores = s.finetuned["task1"], s.importance["task0"]
        for result in (
            forget(model, s.pretrained, s.finetuned["task0"], scores, p=1.0),
            forget(model, s.pretrained, s.pretrained, scores, p=0.0),
        ):
            assert all(torch.equal(result[name], model[name]) for name in model)
            assert all(result[name].dtype == model[name].dtype for name in model)


def test_a_scalar_and_a_constant_tensor_stay() -> None:
    base = {"s": torch.tensor(1.0), "c": torch.ones(4), "e": torch.zeros(0)}
    finetuned = {"s": torch.tensor(2.0), "c": torch.zeros(4), "e": torch.zeros(0)}
    scores = {"s": torch.tensor(9.0), "c": torch.full((4,), 3.0), "e": torch.zeros(0)}
    result = unlearn("sta", base, base, finetuned, scores, p=0.0)
    assert all(torch.equal(result.weights[name], base[name]) for name in base)
    assert all(share == {"target": 0.0} for share in result.kept.values())


def test_the_type_is_the_model_s_and_buffers_are_its_own() -> None:
    model = {"w": torch.tensor([1.0, 2.0], dtype=torch.bfloat16), "n": torch.tensor(5)}
    pretrained = {"w": torch.tensor([0.0, 0.0]), "n": torch.tensor(1)}
    finetuned = {"w": torch.tensor([0.5, 0.5], dtype=torch.float16), "n": torch.tensor(2)}
    scores = {"w": torch.tensor([0.0, 1.0])}
    result = forget(model, pretrained, finetuned, scores)
    assert result["w"].dtype == torch.bfloat16
    assert result["w"].tolist() == [1.0, 1.5]
    assert int(result["n"]) == 5
    wide = forget(model, pretrained, finetuned, scores, dtype=torch.float64)
    assert wide["w"].dtype == torch.float64


def test_nothing_given_is_changed_or_shared(suite) -> None:
    s = suite(1)
    finetuned, scores = s.finetuned["task0"], s.importance["task0"]
    before = [value.clone() for state in (s.pretrained, finetuned, scores) for value in state.values()]
    for p in (0.5, 1.0):
        for value in forget(s.pretrained, s.pretrained, finetuned, scores, p=p).values():
            value.add_(1)
    after = [value for state in (s.pretrained, finetuned, scores) for value in state.values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_control_has_the_same_density_and_its_own_seed(suite) -> None:
    base = {"w": torch.zeros(50), "v": torch.zeros(3, 4)}
    finetuned = {"w": torch.ones(50), "v": torch.ones(3, 4)}
    first = unlearn("random_mask", base, base, finetuned, p=0.7, seed=0)
    assert int(-first.weights["w"].sum()) == 50 - rank(50, 0.7)
    assert int(-first.weights["v"].sum()) == 12 - rank(12, 0.7)
    backwards = {name: base[name] for name in reversed(base)}
    again = unlearn("random_mask", backwards, base, finetuned, p=0.7, seed=0)
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in base)
    other = unlearn("random_mask", base, base, finetuned, p=0.7, seed=1)
    assert not torch.equal(first.weights["w"], other.weights["w"])


def test_what_does_not_fit_is_refused_by_name(suite) -> None:
    s = suite(2)
    finetuned, scores = s.finetuned["task0"], s.importance["task0"]
    with pytest.raises(StaError, match="p must be"):
        forget(s.pretrained, s.pretrained, finetuned, scores, p=-0.1)
    with pytest.raises(StaError, match=r"model that shall forget.*missing 1 tensor: 'scale'"):
        forget({k: v for k, v in s.pretrained.items() if k != "scale"}, s.pretrained, finetuned, scores)
    with pytest.raises(StaError, match=r"fine-tuned on.*shapes differ in 'empty \(1,\)"):
        forget(s.pretrained, s.pretrained, {**finetuned, "empty": torch.ones(1)}, scores)
    with pytest.raises(StaError, match=r"importance.*missing 1 tensor: 'conv.weight'"):
        forget(s.pretrained, s.pretrained, finetuned, {k: v for k, v in scores.items() if k != "conv.weight"})
    for state in ("model", "pretrained", "finetuned", "scores"):
        sources = {
            "model": s.finetuned["task1"],
            "pretrained": s.pretrained,
            "finetuned": finetuned,
            "scores": scores,
        }
        sources[state] = {**sources[state], "blocks.0.b": torch.full((6,), float("nan"))}
        with pytest.raises(StaError, match=r"NaN or Inf in tensor 'blocks.0.b'"):
            forget(sources["model"], sources["pretrained"], sources["finetuned"], sources["scores"])


def test_a_result_that_overflows_is_refused() -> None:
    base = {"w": torch.tensor([-60000.0, 0.0], dtype=torch.float16)}
    finetuned = {"w": torch.tensor([20000.0, 0.0], dtype=torch.float16)}
    with pytest.raises(StaError, match=r"overflows torch.float16 in tensor 'w'"):
        forget(base, base, finetuned, {"w": torch.tensor([1.0, 0.0])})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_has_no_rank_is_found_while_digits_are_counted(dtype: torch.dtype, bad: float) -> None:
    base = {"w": torch.zeros(SMALL + 1)}
    scores = {"w": torch.rand(SMALL + 1, dtype=dtype, generator=torch.Generator().manual_seed(0))}
    scores["w"][:2] = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=dtype)
    assert forget(base, base, base, scores)["w"].shape == base["w"].shape
    scores["w"][-1] = bad
    with pytest.raises(StaError, match=r"importance of task 'target' holds NaN or Inf in tensor 'w'"):
        forget(base, base, base, scores)
