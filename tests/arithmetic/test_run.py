"""The passes of a merge: every entry written once, the same whoever does it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from sta_lightning.arithmetic import run as run_module
from sta_lightning.arithmetic import states as states_module
from sta_lightning.arithmetic.baselines.anchored import Anchored
from sta_lightning.arithmetic.baselines.tsv import Tsv
from sta_lightning.arithmetic.baselines.wudi import SwudiA
from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.forgetting import RandomForgetting, StaForgetting
from sta_lightning.arithmetic.fusion import RandomMask, Sta
from sta_lightning.arithmetic.linear import Average, Negation, TaskArithmetic
from sta_lightning.arithmetic.memory import MemorySink
from sta_lightning.arithmetic.method import Combined, MergeMethod
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import Kept, run
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.errors import StaError
from sta_lightning.kernels import build
from tests.peers import as_processes

State = dict[str, Tensor]
METHODS: list[MergeMethod] = [
    Sta(),
    Sta(0.5, "block"),
    Sta(0.0, "model"),
    Sta(1.0, "none"),
    RandomMask(seed=3),
    Average(),
    TaskArithmetic(0.3),
    StaForgetting(0.6),
    RandomForgetting(),
    Negation(),
]
named = pytest.mark.parametrize(
    "method", METHODS, ids=lambda method: f"{type(method).__name__}-{method.settings()}"
)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STA_CACHE", str(tmp_path_factory.getbasetemp() / "loops"))


class Recorder(MemorySink):
    """A sink that counts how often each entry is written, and keeps everything behind ``write``."""

    def __init__(self, like: State, dtype: torch.dtype | None = None) -> None:
        super().__init__(like, dtype)
        self.times = {
            name: torch.zeros(tensor.numel(), dtype=torch.int64) for name, tensor in self.weights.items()
        }

    def address(self, name: str) -> int | None:
        return None

    def write(self, name: str, start: int, values: Tensor) -> None:
        assert values.dtype == self.dtype(name)
        assert values.dim() == 1
        self.times[name][start : start + values.numel()] += 1
        super().write(name, start, values)


def state(seed: int) -> State:
    drawn = torch.Generator().manual_seed(seed)
    shapes = {"0.w": (20, 31), "0.b": (31,), "1.w": (5, 5), "scalar": (), "empty": (3, 0)}
    found = {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    return found | {"steps": torch.tensor([seed])}


def problem(method: MergeMethod) -> Problem:
    forgets = isinstance(method, StaForgetting | RandomForgetting | Negation)
    tasks = [f"task{i}" for i in range(1 if forgets else 4)]
    scores = {t: {n: v.abs() for n, v in state(90 + i).items()} for i, t in enumerate(tasks)}
    return Problem(
        base=in_memory(state(0)),
        finetuned={task: in_memory(state(1 + i)) for i, task in enumerate(tasks)},
        scores={task: in_memory(model) for task, model in scores.items()} if method.needs_importance else {},
        origin=in_memory(state(50)) if forgets else None,
    )


def merged(method: MergeMethod, **how: Any) -> tuple[State, Kept]:
    sink = Recorder(state(0))
    kept = run(method, problem(method), sink, **how)
    floating = [name for name, value in sink.weights.items() if value.is_floating_point()]
    assert all((sink.times[name] == 1).all() for name in floating), "every entry is written once"
    return {name: sink.weights[name] for name in floating}, kept


def assert_same(first: tuple[State, Kept], second: tuple[State, Kept]) -> None:
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert first[1] == second[1]


@pytest.mark.parametrize("method", [Tsv(), SwudiA(), Anchored("tsv", metric="changes")])
def test_layers_are_merged_side_by_side(method: MergeMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = merged(method, threads=1)
    meeting, plain = threading.Barrier(2, timeout=20), type(method).combine

    def combine(self: MergeMethod, block: Block, state: Any) -> Combined:
        if block.name in ("0.w", "1.w"):
            meeting.wait()
        return plain(self, block, state)

    monkeypatch.setattr(type(method), "combine", combine)
    two, _ = merged(method, threads=2)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6)


@named
def test_it_is_the_same_whoever_does_it(method: MergeMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = merged(method, compiled=False)
    assert_same(merged(method, compiled=True), wanted)
    assert_same(merged(method, compiled=True, device=torch.device("cpu")), wanted)
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 50)
    assert_same(merged(method, compiled=False), wanted)
    assert_same(merged(method, compiled=True, threads=1), wanted)
    assert_same(merged(method, compiled=True, threads=4), wanted)


@named
@pytest.mark.parametrize("size", [2, 3, 9])
def test_processes_share_the_tensors(method: MergeMethod, size: int) -> None:
    wanted, kept = merged(method, compiled=False)
    sinks = [Recorder(state(0)) for _ in range(size)]
    found = as_processes(
        size, lambda peer: run(method, problem(method), sinks[peer.rank], processes=peer, compiled=False)
    )
    assert found == [kept] * size
    assert [list(one) for one in found] == [list(kept)] * size
    for name, value in wanted.items():
        written = [sink for sink in sinks if sink.times[name].any()]
        assert len(written) == (1 if value.numel() else 0), "each tensor by one process"
        assert all(torch.equal(sink.weights[name], value) for sink in written)


def test_an_error_on_one_process_ends_all() -> None:
    bad = {**state(2), "1.w": torch.full((5, 5), float("nan"))}
    made = Problem(base=in_memory(state(0)), finetuned={"a": in_memory(state(1)), "b": in_memory(bad)})
    outcomes = as_processes(
        2, lambda peer: run(Average(), made, Recorder(state(0)), processes=peer, compiled=False)
    )
    assert [type(outcome) for outcome in outcomes] == [StaError] * 2
    assert all(
        "the model fine-tuned on 'b' holds NaN or Inf in tensor '1.w'" in str(outcome) for outcome in outcomes
    )
    assert sum(str(outcome).startswith("process ") for outcome in outcomes) == 1


@named
def test_the_shares_kept(method: MergeMethod) -> None:
    _, kept = merged(method)
    if isinstance(method, Average | TaskArithmetic | Negation):
        assert kept == {}
        return
    assert list(kept) == ["0.w", "0.b", "1.w", "scalar", "empty"]
    for name, shares in kept.items():
        assert list(shares) == sorted(shares)
        assert all(0 <= share <= 1 for share in shares.values())
        assert name != "empty" or set(shares.values()) == {0.0}


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_results_of_another_type(compiled: bool, stored: torch.dtype) -> None:
    wide, kept = merged(Sta(), compiled=False)
    sink = Recorder(state(0), stored)
    assert run(Sta(), problem(Sta()), sink, compiled=compiled) == kept
    assert all(torch.equal(sink.weights[name], value.to(stored)) for name, value in wide.items())


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    "method", [Sta(0.0), TaskArithmetic(), StaForgetting(0.0), Negation()], ids=lambda m: type(m).__name__
)
def test_a_result_that_its_type_cannot_hold(method: MergeMethod, compiled: bool) -> None:
    count = 1 if isinstance(method, StaForgetting | Negation) else 3
    far = {"w": torch.full((4,), 1e6)}
    near = {"w": torch.zeros(4)}
    scores = (
        {str(i): in_memory({"w": torch.arange(4.0).roll(i)}) for i in range(count)}
        if method.needs_importance
        else {}
    )
    made = Problem(
        base=in_memory(near), finetuned={str(i): in_memory(far) for i in range(count)}, scores=scores
    )
    with pytest.raises(StaError, match=r"overflows torch\.float16 in tensor 'w'.*wider type"):
        run(method, made, MemorySink(near, torch.float16), compiled=compiled)


def test_loops_are_compiled_only_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setattr(build, "compiler", lambda: "cc")
    monkeypatch.setattr(build, "_load", lambda source, compiling: asked.append(source) if compiling else None)
    merged(Sta())
    assert asked == []
    merged(Sta(), compiled=False)
    monkeypatch.setattr(build, "PAYS", 0)
    merged(Sta(), compiled=False)
    assert asked == []
    merged(RandomMask())  # which has no loop of its own
    wanted = merged(Sta(), compiled=False)
    assert_same(merged(Sta()), wanted)  # what cannot be compiled is done without
    assert [name in text for text, name in zip(asked, ("sta_bounds", "sta_fuse"), strict=True)] == [True] * 2


@pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
def test_loops_that_are_there_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    native = run_module._Tensor._native
    monkeypatch.setattr(
        run_module._Tensor, "_native", lambda self, piece: used.append(1) or native(self, piece)
    )
    merged(Sta(), compiled=True)
    assert len(used) == 4  # the tensors that are not empty
    merged(Sta())
    assert len(used) == 8
    merged(Sta(), compiled=False)
    assert len(used) == 8


def test_gradients_are_left_alone() -> None:
    base = {"w": torch.nn.Parameter(torch.ones(3))}
    sink = MemorySink(base, None)
    run(Average(), Problem(base=in_memory(base), finetuned={"a": in_memory({"w": torch.zeros(3)})}), sink)
    assert not sink.weights["w"].requires_grad
    assert sink.weights["w"].tolist() == [0.0] * 3


def test_models_that_do_not_match_are_refused_by_name() -> None:
    def attempt(**models: Any) -> None:
        run(
            Average(),
            Problem(**{"base": in_memory(state(0)), "finetuned": {"a": in_memory(state(1))}} | models),
            Recorder(state(0)),
        )

    short = {name: value for name, value in state(1).items() if name != "1.w"}
    with pytest.raises(StaError, match=r"fine-tuned on 'a' does not match .*missing 1 tensor: '1\.w'"):
        attempt(finetuned={"a": in_memory(short)})
    with pytest.raises(StaError, match=r"CLIP does not match .*unknown 1 tensor: 'more'"):
        attempt(finetuned={"a": in_memory({**state(1), "more": torch.ones(1)})}, titles={"a": "CLIP"})
    with pytest.raises(StaError, match=r"shapes differ in '0\.b \(2,\) instead of \(31,\)'"):
        attempt(finetuned={"a": in_memory({**state(1), "0.b": torch.ones(2)})})
    with pytest.raises(StaError, match=r"stands against an integer one in '0\.b torch\.int64"):
        attempt(finetuned={"a": in_memory({**state(1), "0.b": torch.ones(31, dtype=torch.int64)})})
    with pytest.raises(StaError, match=r"the model that is changed does not match .*missing 1 tensor"):
        attempt(base=in_memory(short), origin=in_memory(state(0)), base_title="the model that is changed")
    with pytest.raises(
        StaError, match=r"the importance of task 'a' does not match the model: missing 5 tensors"
    ):
        attempt(scores={"a": {}})
