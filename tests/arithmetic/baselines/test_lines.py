"""LiNeS: the oracle, and what its definition implies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta_lightning.arithmetic import FUSION_METHODS, fusion_method, merge, task_arithmetic
from sta_lightning.arithmetic import states as states_module
from sta_lightning.arithmetic.baselines.lines import Lines
from sta_lightning.arithmetic.depth import block_number, depths
from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.memory import MemorySink, run_in_memory
from sta_lightning.arithmetic.method import Data, VectorMethod
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import run
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.errors import StaError
from tests.oracles import flat as oracle
from tests.peers import as_processes

State = dict[str, Tensor]
DEPTHS = {name: int(name.split(".")[1]) / 2 if name.startswith("blocks") else 0.0 for name in oracle.SHAPES}


def lines(base: State, finetuned: dict[str, State], **settings_: Any) -> State:
    return run_in_memory(Lines(**settings_), base, finetuned).weights


def inner_of(name: str, taus: np.ndarray) -> np.ndarray:
    made = {
        "task_arithmetic": lambda: taus.sum(0),
        "average": lambda: taus.mean(0),
        "ties": lambda: oracle.ties(taus, 0.2, "mean"),
        "pcb": lambda: oracle.pcb(taus, 0.05, "vision"),
        "consensus": lambda: oracle.consensus(taus, 0.4, 2),
    }
    return made[name]()


@pytest.mark.parametrize("inner", ["task_arithmetic", "average", "ties", "pcb", "consensus"])
@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_it_is_the_oracle(tasks: int, inner: str) -> None:
    base, finetuned = oracle.models(tasks, seed=tasks)
    taus = oracle.vectors(base, finetuned)
    got = lines(base, finetuned, inner=inner, beta=0.7)
    depth = oracle.per_entry(base, DEPTHS)
    wanted = oracle.flat(base) + oracle.lines(taus, inner_of(inner, taus), depth, 0.7)
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=2e-6)
    assert list(got) == list(base)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(1, 5), beta=st.floats(-2, 2), steps=st.integers(1, 4))
def test_it_is_the_oracle_where_entries_tie_cancel_and_vanish(
    seed: int, tasks: int, beta: float, steps: int
) -> None:
    base, finetuned = oracle.models(tasks, seed, steps=steps, spread=0.25)
    taus = oracle.vectors(base, finetuned)
    got = lines(base, finetuned, inner="ties", beta=beta)
    wanted = oracle.lines(taus, oracle.ties(taus, 0.2, "mean"), oracle.per_entry(base, DEPTHS), beta)
    np.testing.assert_allclose(oracle.flat(got), oracle.flat(base) + wanted, rtol=1e-6, atol=2e-6)


def test_alpha_of_task_arithmetic_is_one_over_n() -> None:
    base, finetuned = oracle.models(4)
    got = lines(base, finetuned, beta=0.0)
    wanted = task_arithmetic(base, finetuned, scale=0.25)
    for name in base:
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=1e-6)
    last = lines(base, finetuned, beta=0.6)
    for name, scale in (
        ("blocks.0.w", 0.25),
        ("blocks.1.w", 0.55),
        ("blocks.2.w", 0.85),
        ("head.weight", 0.25),
    ):
        wanted = task_arithmetic(base, finetuned, scale=scale)
        torch.testing.assert_close(last[name], wanted[name], rtol=0, atol=1e-6)


def test_the_coefficient_of_the_other_method_has_no_part() -> None:
    base, finetuned = oracle.models(3)
    average, arithmetic = (lines(base, finetuned, inner=i, beta=0.0) for i in ("average", "task_arithmetic"))
    for name in base:
        torch.testing.assert_close(average[name], arithmetic[name], rtol=0, atol=1e-6)


def test_the_order_of_the_tensors_has_no_part() -> None:
    base, finetuned = oracle.models(3)
    first = lines(base, finetuned)
    second = lines({name: base[name] for name in sorted(base)}, finetuned)
    for name in base:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-7)


def test_blocks_and_their_number() -> None:
    assert block_number("transformer.resblocks.11.attn.in_proj_weight") == 11
    assert block_number("layers.1.blocks.5.w") == 1
    assert block_number("ln_post.weight") is None
    assert block_number("conv1.weight") is None
    assert block_number("layer4.0.bn1.weight") == 4
    assert block_number("visual.layer3.10.conv1.weight") == 3
    assert block_number("s2.b10.conv1.conv.weight") is None
    assert depths(["conv1.weight", "blocks.0.w", "blocks.3.w"]) == {
        "conv1.weight": 0,
        "blocks.0.w": 0,
        "blocks.3.w": 1,
    }
    assert depths(["w"]) == {"w": 0}
    assert depths([]) == {}


def test_the_block_of_a_resnet_is_the_stage() -> None:
    names = [f"layer{stage}.{block}.w" for stage in (1, 2, 3, 4) for block in (0, 1)]
    base = {name: torch.zeros(1) for name in ("conv1.w", *names, "fc.w")}
    finetuned = {task: {name: torch.ones(1) for name in base} for task in "ab"}
    got = lines(base, finetuned, beta=1.0)
    wanted = [1.0, *(2 * (0.5 + stage / 3) for stage in range(4) for _ in (0, 1)), 1.0]
    np.testing.assert_allclose([float(got[name]) for name in base], wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["w", "blocks.0.w"])
def test_one_block_has_no_slope(name: str) -> None:
    base, finetuned = {name: torch.zeros(3)}, {t: {name: torch.ones(3)} for t in "ab"}
    assert lines(base, finetuned, beta=5.0)[name].tolist() == [1.0] * 3


@pytest.mark.parametrize("inner", ["task_arithmetic", "ties", "pcb"])
def test_zero_vectors_change_no_bit(inner: str) -> None:
    base, _ = oracle.models(0)
    got = lines(base, {t: {n: v.clone() for n, v in base.items()} for t in "ab"}, inner=inner)
    assert all(torch.equal(got[name], base[name]) for name in base)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(4)))
def test_task_order_changes_no_bit(seed: int, order: list[int]) -> None:
    base, finetuned = oracle.models(4, seed)
    first = lines(base, finetuned, inner="ties")
    second = lines(base, {f"task{i:02}": finetuned[f"task{i:02}"] for i in order}, inner="ties")
    assert all(torch.equal(first[name], second[name]) for name in base)


@pytest.mark.parametrize("inner", ["task_arithmetic", "ties", "pcb"])
def test_pieces_do_not_show(inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = oracle.models(4, seed=2)
    whole = lines(base, finetuned, inner=inner)
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 4)
    again = lines(base, finetuned, inner=inner)
    for name in whole:
        torch.testing.assert_close(whole[name], again[name], rtol=0, atol=1e-6)


def test_processes_find_the_same_coefficients() -> None:
    base, finetuned = oracle.models(3, seed=5)
    problem = Problem(in_memory(base), {task: in_memory(model) for task, model in finetuned.items()})
    method = Lines("ties")
    wanted = lines(base, finetuned, inner="ties")
    sinks = [MemorySink(base, None) for _ in range(2)]
    for sink in sinks:
        for name in oracle.names(base):
            sink.weights[name].fill_(float("nan"))
    outcomes = as_processes(2, lambda peer: run(method, problem, sinks[peer.rank], processes=peer))
    assert outcomes == [{}, {}]
    for name in oracle.names(base):
        written = [sink.weights[name] for sink in sinks if not sink.weights[name].isnan().any()]
        assert any(torch.equal(one, wanted[name]) for one in written)


@pytest.fixture
def largest() -> Iterator[str]:
    """A method of one's own that needs whole tensors."""

    @fusion_method("largest")
    def function(pretrained: Tensor, deltas: Tensor) -> Tensor:
        assert deltas.shape[1:] == pretrained.shape
        return deltas.gather(0, deltas.abs().argmax(0, keepdim=True))[0]

    yield "largest"
    del FUSION_METHODS["largest"]


def test_it_scales_a_method_of_whole_tensors(largest: str) -> None:
    base, finetuned = oracle.models(3, seed=1)
    assert Lines(largest).scope == "tensor"
    assert Lines.scope == Lines().scope == "position"
    taus = oracle.vectors(base, finetuned)
    inner = np.take_along_axis(taus, np.abs(taus).argmax(0)[None], 0)[0]
    got = lines(base, finetuned, inner=largest, beta=0.3)
    wanted = oracle.flat(base) + oracle.lines(taus, inner, oracle.per_entry(base, DEPTHS), 0.3)
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=2e-6)


def test_it_asks_for_what_the_other_method_asks_for() -> None:
    @dataclass(frozen=True)
    class Heaviest(VectorMethod):
        title: ClassVar[str] = "Heaviest"
        data: ClassVar[Data] = "labelled samples"
        needs_importance: ClassVar[bool] = True

        def vector(self, block: Block, state: Any) -> Tensor:
            return sum((s * d for s, d in zip(block.scores, block.deltas(), strict=True)), 0 * block.base)

    base, finetuned = oracle.models(2)
    scores = {t: {n: torch.full(base[n].shape, 2.0) for n in oracle.names(base)} for t in finetuned}
    FUSION_METHODS["heaviest"] = Heaviest
    try:
        made = Lines("heaviest", 0.0)
        assert (made.needs_importance, made.data, Lines.needs_importance) == (True, "labelled samples", False)
        got = merge("lines", base, finetuned, scores, settings={"inner": "heaviest", "beta": 0.0}).weights
        with pytest.raises(StaError, match="importance, and none was given"):
            merge("lines", base, finetuned, settings={"inner": "heaviest"})
    finally:
        del FUSION_METHODS["heaviest"]
    wanted = lines(base, finetuned, beta=0.0)  # twice the vector, half the alpha
    for name in base:
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=1e-6)


def test_what_the_other_method_refuses_is_refused() -> None:
    base, finetuned = oracle.models(1)
    with pytest.raises(StaError, match="agree=2 tasks"):
        lines(base, finetuned, inner="consensus")


@pytest.mark.parametrize("inner", ["sta", "random_mask", "lines", "vectors"])
def test_methods_that_make_no_single_vector_are_refused(inner: str) -> None:
    with pytest.raises(StaError, match=rf"what '{inner}' makes.*'average', 'task_arithmetic'"):
        Lines(inner)


def test_other_settings_are_refused() -> None:
    with pytest.raises(StaError, match="merging method 'ties2' is unknown"):
        Lines("ties2")
    with pytest.raises(StaError, match="beta must be a finite number"):
        Lines(beta=float("nan"))


def test_by_name() -> None:
    base, finetuned = oracle.models(3)
    got = merge("lines", base, finetuned, settings={"inner": "ties", "beta": 0.2})
    assert all(
        torch.equal(value, got.weights[name])
        for name, value in lines(base, finetuned, inner="ties", beta=0.2).items()
    )
    assert got.kept == {}
    assert Lines("ties", 0.2).settings() == {"inner": "ties", "beta": 0.2}
