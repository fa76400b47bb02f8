"""Forgetting that spares a control: the oracle, what it implies, and what is refused."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta_lightning.arithmetic import negate, unlearn
from sta_lightning.arithmetic.spared import Spared
from sta_lightning.errors import StaError
from tests.arithmetic.baselines.test_regmean import LAYERS, grams, inputs
from tests.oracles import spectral as oracle

State = dict[str, Tensor]


def spared(
    model: State, base: State, finetuned: State, gram: State, control: State, mu: float, scale: float = 1.0
) -> State:
    return unlearn(
        *("spared", model, base, finetuned),
        gram=gram,
        control_gram=control,
        scale=scale,
        settings={"mu": mu},
    ).weights


def drawn(seed: int, dtype: torch.dtype = torch.float32, rows: int = 60) -> tuple[State, State, State, State]:
    """A pretrained model, a fine-tuned one, and its layers' inputs by target and control."""
    base, finetuned = oracle.models(1, seed=seed, dtype=dtype)
    seen = inputs(base, ["target", "control"], rows=rows, seed=seed)
    return base, finetuned["task1"], seen["target"], seen["control"]


@pytest.mark.parametrize("mu", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spared_is_the_oracle(dtype: torch.dtype, mu: float) -> None:
    base, finetuned, target, control = drawn(3, dtype)
    model = oracle.model(99, around=base, spread=0.1, dtype=dtype)
    seen = grams({"target": target, "control": control})
    got = spared(model, base, finetuned, seen["target"], seen["control"], mu, 0.7)
    wanted = oracle.floats(model)
    for name in LAYERS:
        delta = finetuned[name].double().numpy() - base[name].double().numpy()
        wanted[name] = model[name].double().numpy() - 0.7 * oracle.spared(
            delta, target[name].numpy(), control[name].numpy(), mu
        )
    oracle.close(got, wanted)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6), mu=st.sampled_from([0.1, 1.0, 10.0]))
def test_of_few_samples_all_that_they_see_is_the_oracle_s(seed: int, rows: int, mu: float) -> None:
    base, finetuned, target, control = drawn(seed, torch.float64, rows)
    seen = grams({"target": target, "control": control})
    got = spared(base, base, finetuned, seen["target"], seen["control"], mu)
    for name in LAYERS:
        delta = (finetuned[name] - base[name]).numpy()
        wanted = oracle.spared(delta, target[name].numpy(), control[name].numpy(), mu)
        for x in (target[name], control[name]):
            moved = (x @ (base[name] - got[name]).mT).numpy() / float(x.abs().max())
            np.testing.assert_allclose(moved, x.numpy() @ wanted.T / float(x.abs().max()), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 60))
def test_where_the_control_does_not_count_layers_are_negated_and_the_rest_stays(seed: int, rows: int) -> None:
    base, finetuned, target, control = drawn(seed, rows=rows)
    seen = grams({"target": target, "control": control})
    got = spared(base, base, finetuned, seen["target"], seen["control"], 0.0, 0.7)
    plain = {**base, **{n: t for n, t in negate(base, base, finetuned, scale=0.7).items() if n in LAYERS}}
    assert all(torch.equal(got[name], value) for name, value in plain.items())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), mu=st.sampled_from([0.01, 1.0, 50.0]), unit=st.floats(1e-3, 1e3))
def test_directions_of_one_alone(seed: int, mu: float, unit: float) -> None:
    """The control's own stay, the target's own and dead inputs are negated, in any unit."""
    base, finetuned, *_ = drawn(seed, torch.float64)
    base, finetuned = ({"c_fc.weight": state["c_fc.weight"]} for state in (base, finetuned))
    axes = torch.zeros(14, 11, dtype=torch.float64)  # the last three inputs are dead
    axes[:11] = torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).normal(size=(11, 11)))[0])
    own = axes[:, :5], axes[:, 5:]
    target, control = ({"c_fc.weight": unit * part @ part.mT} for part in own)
    moved = spared(base, base, finetuned, target, control, mu)["c_fc.weight"] - base["c_fc.weight"]
    delta = finetuned["c_fc.weight"] - base["c_fc.weight"]
    assert float((moved @ own[1]).abs().max()) < 1e-9
    torch.testing.assert_close(moved @ own[0], -delta @ own[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(moved[:, 11:], -delta[:, 11:], rtol=0, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_more_the_control_counts_the_less_it_notices(seed: int) -> None:
    base, finetuned, target, control = drawn(seed, torch.float64)
    seen = grams({"target": target, "control": control})

    def noticed(mu: float) -> float:
        after = spared(base, base, finetuned, seen["target"], seen["control"], mu)
        return sum(
            float(((after[n] - base[n]) @ control[n].mT).square().sum() / control[n].square().sum())
            for n in LAYERS
        )

    found = [noticed(mu) for mu in (0.0, 0.1, 1.0, 10.0, 100.0)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(found))


def test_what_does_not_fit_is_refused_by_name() -> None:
    base, finetuned, target, control = drawn(0)
    seen = grams({"target": target, "control": control})
    with pytest.raises(StaError, match=r"'spared' reads the Gram matrices.*for the task and for the control"):
        unlearn("spared", base, base, finetuned, gram=seen["target"])
    with pytest.raises(StaError, match=r"'spared' reads the Gram matrices.*for the task and for the control"):
        unlearn("spared", base, base, finetuned, control_gram=seen["control"])
    fewer = {name: gram for name, gram in seen["control"].items() if name != "c_fc.weight"}
    with pytest.raises(StaError, match=r"the control has no Gram matrix for 'c_fc.weight'"):
        spared(base, base, finetuned, seen["target"], fewer, 1.0)
    with pytest.raises(StaError, match=r"of the control for tensor 'c_fc.weight'.*the shape"):
        spared(base, base, finetuned, seen["target"], {**seen["control"], "c_fc.weight": torch.eye(9)}, 1.0)
    for mu in (-0.1, float("inf"), float("nan")):
        with pytest.raises(StaError, match=r"mu must be a number in \[0, inf\)"):
            Spared(mu)
    with pytest.raises(StaError, match="scale must be a finite number"):
        Spared(scale=float("nan"))
