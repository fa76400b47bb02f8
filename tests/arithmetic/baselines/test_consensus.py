"""Consensus merging: the oracle, and what its definition implies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta_lightning.arithmetic import merge, task_arithmetic
from sta_lightning.arithmetic import states as states_module
from sta_lightning.arithmetic.baselines.consensus import Consensus
from sta_lightning.arithmetic.dare import Dare
from sta_lightning.arithmetic.memory import run_in_memory
from sta_lightning.errors import StaError
from tests.oracles import flat as oracle

State = dict[str, Tensor]


def consensus(base: State, finetuned: dict[str, State], **settings_: Any) -> State:
    return run_in_memory(Consensus(**settings_), base, finetuned).weights


@pytest.mark.parametrize("agree", [1, 2, 3])
@pytest.mark.parametrize("tall", [0.2, 0.4, 0.6])
@pytest.mark.parametrize("tasks", [3, 6, 8])
def test_it_is_the_oracle(tasks: int, tall: float, agree: int) -> None:
    base, finetuned = oracle.models(tasks, seed=tasks)
    got = consensus(base, finetuned, tall=tall, agree=agree)
    wanted = oracle.flat(base) + 0.4 * oracle.consensus(oracle.vectors(base, finetuned), tall, agree)
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=1e-6)
    assert list(got) == list(base)


@pytest.mark.parametrize("compiled", [False, True])
def test_every_task_may_have_a_lambda_of_its_own(compiled: bool) -> None:
    base, finetuned = oracle.models(4, seed=1)
    own = dict(zip(sorted(finetuned), [0.2, 0.6, 0.3, 1.5], strict=True))
    method = Consensus(tall=dict(reversed(own.items())))
    got = run_in_memory(method, base, finetuned, compiled=compiled).weights
    wanted = oracle.flat(base) + 0.4 * oracle.consensus(
        oracle.vectors(base, finetuned), list(own.values()), 2
    )
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=1e-6)
    with pytest.raises(StaError, match=r"tall is given for the tasks 'task.*Give one number for every one"):
        consensus(base, finetuned, tall={"task00": 0.4})
    with pytest.raises(StaError, match=r"tall, the lambda of the TALL masks, of task 'a' must be a number"):
        Consensus(tall={"a": -1.0})


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    tasks=st.integers(1, 5),
    tall=st.floats(0.0, 3.0) | st.sampled_from([0.0, 0.5, 1.0]),
    agree=st.integers(1, 5),
    steps=st.integers(1, 4),
)
def test_it_is_the_oracle_where_entries_tie_cancel_and_vanish(
    seed: int, tasks: int, tall: float, agree: int, steps: int
) -> None:
    base, finetuned = oracle.models(tasks, seed, steps=steps, spread=0.25)
    agree = min(agree, tasks)
    got = consensus(base, finetuned, tall=tall, agree=agree, scale=1.0)
    wanted = oracle.flat(base) + oracle.consensus(oracle.vectors(base, finetuned), tall, agree)
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    tasks=st.integers(2, 5),
    tall=st.floats(0, 2),
    agree=st.integers(1, 2),
    steps=st.integers(0, 4),
)
def test_compiled_or_not_the_bits_are_the_same(
    seed: int, tasks: int, tall: float, agree: int, steps: int
) -> None:
    base, finetuned = oracle.models(tasks, seed, steps=steps, spread=0.25)
    for dare in (None, Dare(0.3)):
        first, second = (
            run_in_memory(Consensus(tall, agree), base, finetuned, dare=dare, compiled=compiled).weights
            for compiled in (True, False)
        )
        assert all(torch.equal(first[name], value) for name, value in second.items())


def test_float64_models_keep_their_digits() -> None:
    base, finetuned = oracle.models(3, dtype=torch.float64)
    got = consensus(base, finetuned, scale=1.0)
    wanted = oracle.flat(base) + oracle.consensus(oracle.vectors(base, finetuned), 0.4, 2)
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=1e-14)


def test_selfish_and_unused_entries_are_dropped() -> None:
    base = {"w": torch.zeros(3)}
    finetuned = {
        "a": {"w": torch.tensor([1.0, 1.0, 1.0])},
        "b": {"w": torch.tensor([1.0, 0.1, -1.0])},
        "c": {"w": torch.tensor([1.0, 0.1, 0.0])},
    }
    # In the middle only 'a' moves more than 0.4 times what the others add; on the right 'a' and 'b'
    # cancel, and use it.
    assert consensus(base, finetuned, scale=1.0)["w"].tolist() == pytest.approx([3.0, 0.0, 0.0])
    assert consensus(base, finetuned, scale=1.0, agree=1)["w"].tolist() == pytest.approx([3.0, 1.2, 0.0])
    assert consensus(base, finetuned, scale=1.0, agree=3)["w"].tolist() == pytest.approx([3.0, 0.0, 0.0])


def test_a_lambda_of_zero_keeps_what_enough_tasks_change() -> None:
    base, finetuned = oracle.models(4, seed=1)
    got = consensus(base, finetuned, tall=0.0, agree=4, scale=0.3)
    wanted = task_arithmetic(base, finetuned, scale=0.3)
    for name in base:
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=1e-6)


def test_one_task_that_is_enough_is_task_arithmetic() -> None:
    base, finetuned = oracle.models(1)
    got, wanted = consensus(base, finetuned, agree=1), task_arithmetic(base, finetuned)
    for name in base:
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), tall=st.floats(0, 2), agree=st.integers(1, 3))
def test_more_agreement_keeps_a_subset(seed: int, tall: float, agree: int) -> None:
    base, finetuned = oracle.models(4, seed)
    few = oracle.flat(consensus(base, finetuned, tall=tall, agree=agree)) != oracle.flat(base)
    more = oracle.flat(consensus(base, finetuned, tall=tall, agree=agree + 1)) != oracle.flat(base)
    assert np.all(few | ~more)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(4)))
def test_task_order_changes_no_bit(seed: int, order: list[int]) -> None:
    base, finetuned = oracle.models(4, seed)
    first = consensus(base, finetuned)
    second = consensus(base, {f"task{i:02}": finetuned[f"task{i:02}"] for i in order})
    assert all(torch.equal(first[name], second[name]) for name in base)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_zero_vectors_change_no_bit(dtype: torch.dtype) -> None:
    base, _ = oracle.models(0, dtype=dtype)
    got = consensus(base, {t: {n: v.clone() for n, v in base.items()} for t in "ab"})
    assert all(torch.equal(got[name], base[name]) and got[name].dtype == base[name].dtype for name in base)


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = oracle.models(4, seed=2)
    whole = consensus(base, finetuned)
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 4)
    again = consensus(base, finetuned)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_by_name_and_with_a_coefficient() -> None:
    base, finetuned = oracle.models(3)
    got = merge("consensus", base, finetuned, scale=0.5, settings={"tall": 0.6, "agree": 1}).weights
    wanted = consensus(base, finetuned, tall=0.6, agree=1, scale=0.5)
    assert all(torch.equal(got[name], wanted[name]) for name in base)


def test_fewer_tasks_than_have_to_agree_are_refused() -> None:
    base, finetuned = oracle.models(1)
    with pytest.raises(StaError, match=r"agree=2 tasks .* there are only 1: 'task00'"):
        consensus(base, finetuned)


@pytest.mark.parametrize("tall", [-0.1, float("nan"), float("inf"), "0.4", None, True])
def test_lambdas_that_are_none_are_refused(tall: Any) -> None:
    with pytest.raises(StaError, match=r"tall.* must be a number in \[0, inf\)"):
        Consensus(tall=tall)


@pytest.mark.parametrize("agree", [0, -1, 1.5, "2", None, True])
def test_numbers_of_tasks_that_are_none_are_refused(agree: Any) -> None:
    with pytest.raises(StaError, match=r"must be an integer in \[1, inf\)"):
        Consensus(agree=agree)
    with pytest.raises(StaError, match="scale must be a finite number"):
        Consensus(scale=float("nan"))
