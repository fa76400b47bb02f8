"""WUDI, SWUDI and SWUDI-A: the oracle, what their definitions imply, and what is refused."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sta_lightning.arithmetic import average, task_arithmetic
from sta_lightning.arithmetic.baselines.wudi import Swudi, SwudiA, Wudi
from sta_lightning.errors import StaError
from tests.arithmetic.by_name import by_name
from tests.oracles import quadratic
from tests.oracles import spectral as oracle

wudi, swudi, swudi_a = by_name("wudi"), by_name("swudi"), by_name("swudi_a")

MATRICES = ["in_proj.weight", "c_fc.weight", "out_proj.weight"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
Rule = Callable[[list[oracle.Array]], oracle.Array]


def check(got: oracle.State, base: oracle.State, finetuned: oracle.State, rule: Rule, scale: float) -> None:
    models = [oracle.floats(finetuned[task]) for task in sorted(finetuned)]
    oracle.close(got, oracle.merged(oracle.floats(base), models, rule, scale))
    assert list(got) == list(base)
    assert torch.equal(got["steps"], base["steps"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_they_are_the_oracle(tasks: int, dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(tasks, seed=tasks, dtype=dtype)
    more = {"scale": 0.7, "dtype": None if dtype == torch.float64 else torch.float32}
    check(wudi(base, finetuned, **more), base, finetuned, quadratic.wudi, 0.7)
    check(wudi(base, finetuned, ridge=0.05, **more), base, finetuned, lambda d: quadratic.wudi(d, 0.05), 0.7)
    check(swudi_a(base, finetuned, **more), base, finetuned, quadratic.swudi_a, 0.7)
    for time, rank in ((1300.0, 0.65), (3.0, 0.3), (20.0, 1.0)):
        check(
            swudi(base, finetuned, time=time, rank=rank, **more),
            base,
            finetuned,
            lambda d, time=time, rank=rank: quadratic.swudi(d, time, rank),
            0.7,
        )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(1, 4), time=st.floats(0.1, 30))
def test_swudi_of_all_directions_is_gradient_flow(seed: int, tasks: int, time: float) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    got = swudi(base, finetuned, time=time, rank=1.0)
    for name in MATRICES:
        deltas = [(finetuned[task][name] - base[name]).numpy() for task in sorted(finetuned)]
        np.testing.assert_allclose(
            (got[name] - base[name]).numpy(), quadratic.flow(deltas, time), atol=1e-9, err_msg=name
        )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(2, 4))
def test_no_other_matrix_interferes_less(seed: int, tasks: int) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    got = wudi(base, finetuned)
    generator = torch.Generator().manual_seed(seed)
    for name in MATRICES:
        deltas = [finetuned[task][name] - base[name] for task in sorted(finetuned)]

        def interference(tau: torch.Tensor, deltas: list[torch.Tensor] = deltas) -> float:
            return sum(float(((tau - d) @ d.mT).square().sum() / d.square().sum()) for d in deltas)

        best = interference(got[name] - base[name])
        near = 0.01 * torch.randn(base[name].shape, generator=generator, dtype=torch.float64)
        assert best <= interference(got[name] - base[name] + near)
        assert best <= interference(sum(deltas))  # type: ignore[arg-type]


def test_tasks_that_share_no_input_stay_the_sum() -> None:
    base = {"w": torch.zeros(4, 6)}
    generator = torch.Generator().manual_seed(0)
    finetuned = {t: {"w": torch.zeros(4, 6)} for t in "ab"}
    finetuned["a"]["w"][:, :3] = torch.randn(4, 3, generator=generator)
    finetuned["b"]["w"][:, 3:] = torch.randn(4, 3, generator=generator)
    wanted = task_arithmetic(base, finetuned, scale=1.0)["w"]
    for method in (wudi, swudi, swudi_a):
        torch.testing.assert_close(method(base, finetuned)["w"], wanted, rtol=0, atol=1e-6)


def test_one_task_is_itself_and_nothing_stays_nothing() -> None:
    base, finetuned = oracle.models(1)
    for method in (wudi, swudi, swudi_a):
        oracle.close(method(base, finetuned), oracle.floats(finetuned["task1"]))
        same = method(base, {"a": base, "b": base})
        assert all(torch.equal(same[name], base[name]) for name in base)


def test_a_task_that_changed_nothing_counts_for_nothing() -> None:
    base, finetuned = oracle.models(2)
    for method in (wudi, swudi, swudi_a):
        got, wanted = method(base, {**finetuned, "idle": base}), method(base, finetuned)
        for name in MATRICES:
            torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=1e-6)


def test_other_tensors_are_averaged() -> None:
    base, finetuned = oracle.models(3)
    mean = average(base, finetuned)
    for method in (wudi, swudi, swudi_a):
        got = method(base, finetuned)
        assert all(
            torch.equal(got[name], mean[name]) for name in ("conv1.weight", "text_projection", "ln.bias")
        )


@settings(max_examples=15, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10_000), tasks=st.integers(2, 5))
def test_the_tasks_order_is_rounding(data: st.DataObject, seed: int, tasks: int) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    names = data.draw(st.permutations(sorted(finetuned)))
    renamed = {new: finetuned[old] for new, old in zip(sorted(finetuned), names, strict=True)}
    for method in (wudi, swudi, swudi_a):
        oracle.close(method(base, renamed), oracle.floats(method(base, finetuned)), atol=1e-7)


@pytest.mark.parametrize(
    ("method", "wrong", "message"),
    [
        (Wudi, {"ridge": -1.0}, r"ridge must be a number in \[0, inf\)"),
        (Wudi, {"ridge": float("nan")}, r"ridge must be a number"),
        (Swudi, {"time": 0.0}, r"time must be a number in \(0, inf\), and is 0.0. The authors use 1300"),
        (Swudi, {"rank": 0}, r"rank, the share.*\(0, 1\]"),
        (Swudi, {"rank": 1.5}, r"rank, the share.*\(0, 1\]"),
        (SwudiA, {"scale": float("inf")}, "scale must be a finite number"),
    ],
)
def test_what_is_out_of_range_is_refused(method: type, wrong: dict[str, float], message: str) -> None:
    with pytest.raises(StaError, match=message):
        method(**wrong)
