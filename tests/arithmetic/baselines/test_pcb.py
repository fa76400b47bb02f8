"""PCB-Merging: the oracle, and what its definition implies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta_lightning.arithmetic import merge
from sta_lightning.arithmetic import states as states_module
from sta_lightning.arithmetic.baselines.pcb import Pcb, _exp, _tanh
from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.memory import MemorySink, run_in_memory
from sta_lightning.arithmetic.normalization import Bounds
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import run
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.errors import StaError
from tests.oracles import flat as oracle
from tests.peers import as_processes

VARIANTS = ["vision", "general"]
State = dict[str, Tensor]


def pcb(base: State, finetuned: dict[str, State], **settings_: Any) -> State:
    return run_in_memory(Pcb(**settings_), base, finetuned).weights


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("tasks", [1, 2, 3, 8])
def test_it_is_the_oracle(tasks: int, ratio: float, variant: Any) -> None:
    base, finetuned = oracle.models(tasks, seed=tasks)
    got = pcb(base, finetuned, ratio=ratio, variant=variant)
    wanted = oracle.flat(base) + 1.2 * oracle.pcb(oracle.vectors(base, finetuned), ratio, variant)
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=1e-6)
    assert list(got) == list(base)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_oracle_where_both_ends_are_clamped(variant: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (150, 200), "b": (5000,)}  # 35 000 entries: 0.01% of them are 3
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    finetuned = {
        t: {name: v + 0.1 * torch.randn(v.shape, generator=generator) for name, v in base.items()}
        for t in "abcd"
    }
    got = pcb(base, finetuned, variant=variant)
    wanted = oracle.flat(base) + 1.2 * oracle.pcb(oracle.vectors(base, finetuned), 0.05, variant)
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=1e-6)
    changed = float(np.mean(oracle.flat(got) != oracle.flat(base)))
    assert 0.05 < changed < 0.2  # the winners of four tasks, some of them the same


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    tasks=st.integers(1, 5),
    ratio=st.floats(0.001, 1.0),
    variant=st.sampled_from(VARIANTS),
    steps=st.integers(1, 4),
)
@example(seed=3, tasks=3, ratio=0.5, variant="vision", steps=3)
def test_it_is_the_oracle_where_entries_tie_cancel_and_vanish(
    seed: int, tasks: int, ratio: float, variant: Any, steps: int
) -> None:
    base, finetuned = oracle.models(tasks, seed, steps=steps, spread=0.25)
    got = pcb(base, finetuned, ratio=ratio, variant=variant, scale=1.0)
    wanted = oracle.flat(base) + oracle.pcb(oracle.vectors(base, finetuned), ratio, variant)
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float64_models_keep_their_digits(variant: Any) -> None:
    base, finetuned = oracle.models(3, dtype=torch.float64)
    got = pcb(base, finetuned, scale=1.0, variant=variant)
    wanted = oracle.flat(base) + oracle.pcb(oracle.vectors(base, finetuned), 0.05, variant)
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("clamp", [0.0, 0.01, 0.2])
def test_the_clamp_is_a_setting(variant: Any, clamp: float) -> None:
    base, finetuned = oracle.models(3, dtype=torch.float64)
    got = pcb(base, finetuned, scale=1.0, variant=variant, clamp=clamp)
    wanted = oracle.flat(base) + oracle.pcb(oracle.vectors(base, finetuned), 0.05, variant, clamp)
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_zero_vectors_change_no_bit(dtype: torch.dtype, variant: Any) -> None:
    base, _ = oracle.models(0, dtype=dtype)
    got = pcb(base, {t: {n: v.clone() for n, v in base.items()} for t in "ab"}, variant=variant)
    assert all(torch.equal(got[name], base[name]) and got[name].dtype == base[name].dtype for name in base)


def test_a_vector_of_one_magnitude_has_no_winner() -> None:
    base = {"w": torch.zeros(200)}
    got = pcb(base, {t: {"w": torch.full((200,), 0.5)} for t in "ab"})
    assert got["w"].tolist() == [0.0] * 200


def test_one_position_of_one_task_changes_nothing() -> None:
    assert pcb({"w": torch.zeros(())}, {"t": {"w": torch.tensor(3.0)}})["w"].item() == 0.0


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-700, 700), min_size=1, max_size=20), size=st.sampled_from([1.0, 1e-9, 1e-300])
)
@example(values=[0.0, -0.0, 700.0, -700.0, 22.0, 0.35, -5e-324], size=1.0)
def test_exponential_and_hyperbolic_tangent(values: list[float], size: float) -> None:
    x = np.array(values) * size
    given_ = torch.from_numpy(x)
    np.testing.assert_allclose(_exp(-given_.abs()).numpy(), np.exp(-np.abs(x)), rtol=4e-16, atol=0)
    np.testing.assert_allclose(_tanh(given_).numpy(), np.tanh(x), rtol=1e-15, atol=0)
    assert np.array_equal(np.signbit(_tanh(given_).numpy()), np.signbit(x))


def test_very_many_tasks_do_not_overflow() -> None:
    tasks = 800  # e^800 is infinite
    finetuned = [torch.tensor([0.0, 0.5, 1.0])] * tasks
    block = Block("w", 0, torch.zeros(3), torch.zeros(3), finetuned, [])
    balances = list(Pcb()._balances(block, [Bounds(0.0, 1.0)] * tasks))
    assert len(balances) == tasks
    assert balances[0].tolist()[::2] == [0.0, 1.0]


def test_where_one_task_wins_its_entry_is_the_result() -> None:
    base, finetuned = oracle.models(3, seed=1)
    taus = oracle.vectors(base, finetuned)
    moved = (oracle.flat(pcb(base, finetuned, ratio=0.02, scale=1.0)) - oracle.flat(base)).round(6)
    sizes = np.sort(np.abs(taus), axis=1)
    limits = sizes[:, [0, int(taus.shape[1] * 0.99 - 1)]]
    possible = np.sign(taus) * np.clip(np.abs(taus), limits[:, :1], limits[:, 1:])
    low, high = np.minimum(possible.min(0), 0), np.maximum(possible.max(0), 0)
    assert np.all((moved >= low - 1e-5) & (moved <= high + 1e-5))  # a weighted mean, or nothing


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), variant=st.sampled_from(VARIANTS), order=st.permutations(range(4)))
def test_task_order_changes_no_bit(seed: int, variant: Any, order: list[int]) -> None:
    base, finetuned = oracle.models(4, seed)
    first = pcb(base, finetuned, variant=variant)
    second = pcb(base, {f"task{i:02}": finetuned[f"task{i:02}"] for i in order}, variant=variant)
    assert all(torch.equal(first[name], second[name]) for name in base)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pieces_do_not_show(variant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = oracle.models(4, seed=2)
    whole = pcb(base, finetuned, ratio=0.3, variant=variant)
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 4)
    again = pcb(base, finetuned, ratio=0.3, variant=variant)
    for name in whole:
        torch.testing.assert_close(whole[name], again[name], rtol=0, atol=1e-6)


def test_processes_find_the_same_winners() -> None:
    base, finetuned = oracle.models(3, seed=5)
    problem = Problem(in_memory(base), {task: in_memory(model) for task, model in finetuned.items()})
    wanted = pcb(base, finetuned)
    sinks = [MemorySink(base, None) for _ in range(2)]
    for sink in sinks:
        for name in oracle.names(base):
            sink.weights[name].fill_(float("nan"))
    outcomes = as_processes(2, lambda peer: run(Pcb(), problem, sinks[peer.rank], processes=peer))
    assert outcomes == [{}, {}]
    for name in oracle.names(base):
        written = [sink.weights[name] for sink in sinks if not sink.weights[name].isnan().any()]
        assert any(torch.equal(one, wanted[name]) for one in written)


def test_models_without_entries_are_merged() -> None:
    base = {"empty": torch.zeros(0, 2), "n": torch.tensor(1)}
    assert pcb(base, {"a": base})["empty"].shape == (0, 2)


def test_by_name_and_with_a_coefficient() -> None:
    base, finetuned = oracle.models(3)
    got = merge("pcb", base, finetuned, scale=0.5, settings={"ratio": 0.1, "variant": "general"}).weights
    wanted = pcb(base, finetuned, ratio=0.1, scale=0.5, variant="general")
    assert all(torch.equal(got[name], wanted[name]) for name in base)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, 5, float("nan"), "0.2", None, True])
def test_shares_that_are_none_are_refused(ratio: Any) -> None:
    with pytest.raises(StaError, match=r"ratio must be a number in \(0, 1\]"):
        Pcb(ratio=ratio)


def test_other_settings_are_refused() -> None:
    with pytest.raises(StaError, match=r"variant='nlp' was asked for; choose one of 'vision', 'general'"):
        Pcb(variant="nlp")  # type: ignore[arg-type]
    with pytest.raises(StaError, match=r"clamp, the share.*\[0, 0.5\), and is 0.5"):
        Pcb(clamp=0.5)
    with pytest.raises(StaError, match="scale must be a finite number"):
        Pcb(scale=float("nan"))


def test_what_is_not_finite_is_refused_by_name() -> None:
    base, finetuned = oracle.models(2)
    finetuned["task01"]["blocks.0.b"][1] = float("inf")
    with pytest.raises(StaError, match=r"fine-tuned on 'task01'.*NaN or Inf.*'blocks.0.b'"):
        pcb(base, finetuned)
