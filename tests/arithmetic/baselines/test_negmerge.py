"""NegMerge: the oracle, what its definition implies, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sta_lightning.arithmetic import negate, unlearn
from sta_lightning.arithmetic import states as states_module
from sta_lightning.arithmetic.baselines.negmerge import NegMerge
from sta_lightning.errors import StaError
from tests.oracles import spectral as oracle

State = dict[str, torch.Tensor]


def negmerge(
    model: State, base: State, finetuned: list[State], scale: float = 1.0, dtype: torch.dtype | None = None
) -> State:
    first, *more = finetuned
    return unlearn("negmerge", model, base, first, more=more, scale=scale, dtype=dtype).weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("several", [1, 2, 3, 6])
def test_negmerge_is_the_oracle(several: int, dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(several, seed=several, dtype=dtype)
    model = oracle.model(99, around=base, spread=0.1, dtype=dtype)
    wide = None if dtype == torch.float64 else torch.float32
    got = negmerge(model, base, list(finetuned.values()), scale=0.7, dtype=wide)
    floats = [oracle.floats(one) for one in finetuned.values()]
    oracle.close(got, oracle.negmerge(oracle.floats(model), oracle.floats(base), floats, 0.7))
    assert list(got) == list(model)
    assert torch.equal(got["steps"], model["steps"])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 3.0]), min_size=n, max_size=n), min_size=1
        )
    ),
    scale=st.sampled_from([-1.0, 0.5, 1.0]),
)
def test_signs_with_zeros_are_the_oracle_s(rows: list[list[float]], scale: float) -> None:
    columns = torch.tensor(rows)
    base = {"w": torch.zeros(len(rows))}
    finetuned = [{"w": column} for column in columns.unbind(1)]
    wanted = oracle.negmerge(
        oracle.floats(base), oracle.floats(base), [oracle.floats(t) for t in finetuned], scale
    )
    oracle.close(negmerge(base, base, finetuned, scale=scale), wanted)


def test_zero_agrees_with_nothing() -> None:
    base = {"w": torch.zeros(5)}
    finetuned = [
        {"w": torch.tensor([1.0, 1.0, -1.0, 0.0, 0.0])},
        {"w": torch.tensor([3.0, -3.0, -2.0, 1.0, 0.0])},
    ]
    assert negmerge(base, base, finetuned)["w"].tolist() == [-2.0, 0.0, 1.5, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_fine_tuning_is_task_arithmetic(dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(1, dtype=dtype)
    model = oracle.model(99, around=base, dtype=dtype)
    got, wanted = (
        negmerge(model, base, [finetuned["task1"]], scale=0.7),
        negate(model, base, finetuned["task1"], scale=0.7),
    )
    assert all(torch.equal(got[name], value) for name, value in wanted.items())


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10_000), several=st.integers(2, 5))
def test_the_order_is_rounding_and_one_more_agrees_less(data: st.DataObject, seed: int, several: int) -> None:
    base, finetuned = oracle.models(several, seed=seed)
    models = list(finetuned.values())
    got = negmerge(base, base, models)
    oracle.close(negmerge(base, base, data.draw(st.permutations(models))), oracle.floats(got))
    fewer = negmerge(base, base, models[:-1])
    for name in oracle.SHAPES:
        assert not bool(((got[name] != base[name]) & (fewer[name] == base[name])).any())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), several=st.integers(1, 5))
def test_identical_fine_tunings_are_one(seed: int, several: int) -> None:
    base, finetuned = oracle.models(1, seed=seed)
    got = negmerge(base, base, [finetuned["task1"]] * several)
    oracle.close(got, oracle.floats(negate(base, base, finetuned["task1"])))
    same = negmerge(base, base, [base] * several)
    assert all(torch.equal(same[name], base[name]) for name in base)


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = oracle.models(3)
    whole = negmerge(base, base, list(finetuned.values()))
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 4)
    again = negmerge(base, base, list(finetuned.values()))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_it_has_its_name_and_takes_more() -> None:
    base, finetuned = oracle.models(3)
    first, *more = finetuned.values()
    merged = unlearn("negmerge", base, base, first, more=more, scale=0.5, task="digits")
    wanted = negmerge(base, base, [first, *more], scale=0.5)
    assert all(torch.equal(merged.weights[name], value) for name, value in wanted.items())
    assert merged.kept == {}
    alone = unlearn("negmerge", base, base, first)
    assert all(torch.equal(alone.weights[n], v) for n, v in negate(base, base, first).items())
    with pytest.raises(StaError, match=r"'task_arithmetic' takes one fine-tuned model, and 3.*'negmerge'"):
        unlearn("task_arithmetic", base, base, first, more=more)


def test_what_does_not_fit_is_refused_by_name() -> None:
    base, finetuned = oracle.models(2)
    first, second = finetuned.values()
    with pytest.raises(StaError, match=r"fine-tuned on 'target \(2\)'.*missing 1 tensor: 'scale'"):
        negmerge(base, base, [first, {n: v for n, v in second.items() if n != "scale"}])
    with pytest.raises(StaError, match=r"fine-tuned on 'target \(2\)' holds NaN or Inf in tensor 'scale'"):
        negmerge(base, base, [first, {**second, "scale": torch.tensor(float("nan"))}])
    with pytest.raises(StaError, match="scale must be a finite number"):
        NegMerge(float("inf"))
