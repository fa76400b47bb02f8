"""The one interface of all methods: what a method is given for what it asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

from sta_lightning.arithmetic import FORGET_METHODS, FUSION_METHODS
from sta_lightning.arithmetic import states as states_module
from sta_lightning.arithmetic.entries import Block, Entries
from sta_lightning.arithmetic.memory import run_in_memory
from sta_lightning.arithmetic.method import Combined, MergeMethod, Survey
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.arithmetic.workers import Workers
from sta_lightning.errors import StaError
from tests.peers import as_processes

State = dict[str, Tensor]


@pytest.fixture
def models() -> tuple[State, dict[str, State]]:
    generator = torch.Generator().manual_seed(0)

    def state() -> State:
        return {
            "w": torch.randn(5, 7, generator=generator),
            "b": torch.randn(7, generator=generator),
            "scalar": torch.randn((), generator=generator),
            "empty": torch.zeros(0, 2),
            "steps": torch.tensor(3),
        }

    return state(), {"two": state(), "one": state()}


@dataclass(frozen=True)
class Watched(MergeMethod):
    """Adds all task vectors, scaled by their greatest entry of all; remembers what it was given."""

    whole: bool = False
    seen: tuple[list[Block], ...] = ([],)

    title: ClassVar[str] = "Watched"

    @property
    def scope(self) -> Literal["position", "tensor"]:  # type: ignore[override]
        return "tensor" if self.whole else "position"

    def prepare(self, survey: Survey) -> float:
        def greatest(entries: Entries) -> float:
            found = 0.0
            for piece in entries.pieces():
                found = max([found, *(float(d.abs().max()) for d in entries.block(piece).deltas())])
            return found

        return max(survey.each(greatest).values())

    def prepare_tensor(self, entries: Entries, prepared: float) -> tuple[str, float]:
        return entries.name, prepared

    def combine(self, block: Block, state: tuple[str, float]) -> Combined:
        assert state[0] == block.name
        self.seen[0].append(block)
        return Combined(block.base + sum(block.deltas(), torch.zeros_like(block.base)) / state[1])


def expected(base: State, finetuned: dict[str, State]) -> State:
    floating = [name for name in base if base[name].is_floating_point()]
    greatest = max(
        float((model[name] - base[name]).abs().max())
        for model in finetuned.values()
        for name in floating
        if base[name].numel()
    )
    return {
        name: base[name] + sum(finetuned[task][name] - base[name] for task in sorted(finetuned)) / greatest
        for name in floating
    }


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("piece", [1 << 17, 4])
def test_a_method_sees_what_it_asks_for(
    models: tuple[State, dict[str, State]], whole: bool, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, finetuned = models
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", piece)
    method = Watched(whole, ([],))
    result = run_in_memory(method, base, finetuned)
    for name, value in expected(base, finetuned).items():
        torch.testing.assert_close(result.weights[name], value)
    assert list(result.weights) == list(base)
    assert result.kept == {}
    blocks = [block for block in method.seen[0] if block.base.numel()]
    if whole:
        assert {block.name: tuple(block.base.shape) for block in blocks} == {
            "w": (5, 7),
            "b": (7,),
            "scalar": (),
        }
        assert all(block.start == 0 for block in blocks)
    else:
        assert {block.base.dim() for block in blocks} == {1}
        assert max(block.base.numel() for block in blocks) == min(piece, 35)
        assert sum(block.base.numel() for block in blocks) == 35 + 7 + 1
    for block in blocks:
        assert block.origin is block.base
        flat = [finetuned[task][block.name].reshape(-1)[block.piece] for task in sorted(finetuned)]
        assert all(torch.equal(a.reshape(-1), b) for a, b in zip(block.finetuned, flat, strict=True))
        assert block.scores == []


def test_a_survey_is_shared_out_and_told_to_all(models: tuple[State, dict[str, State]]) -> None:
    base, finetuned = models
    problem = Problem(in_memory(base), {task: in_memory(model) for task, model in finetuned.items()})
    looked: list[tuple[int, str]] = []

    def work(peer: Any) -> dict[str, int]:
        def look(entries: Entries) -> int:
            looked.append((peer.rank, entries.name))
            return entries.numel

        with Workers() as workers:
            return Survey(problem, workers, peer).each(look)

    wanted = {"w": 35, "b": 7, "scalar": 1, "empty": 0}
    found = as_processes(2, work)
    assert found == [wanted] * 2
    assert [list(one) for one in found] == [list(wanted)] * 2
    assert sorted(name for _, name in looked) == sorted(wanted)
    assert {rank for rank, _ in looked} == {0, 1}


def test_what_a_method_refuses_ends_the_merge_before_anything_is_read(
    models: tuple[State, dict[str, State]],
) -> None:
    class Choosy(Watched):
        def check(self, problem: Problem) -> None:
            raise StaError(f"not with {sorted(problem.finetuned)}")

    base, finetuned = models
    base["w"].fill_(float("nan"))
    method = Choosy(False, ([],))
    with pytest.raises(StaError, match=r"not with \['one', 'two'\]"):
        run_in_memory(method, base, finetuned)
    assert method.seen == ([],)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("where", ["base", "two"])
def test_nothing_infinite_reaches_a_method(
    models: tuple[State, dict[str, State]], whole: bool, where: str
) -> None:
    @dataclass(frozen=True)
    class Plain(Watched):
        def prepare(self, survey: Survey) -> float:
            return 1.0

    base, finetuned = models
    (base if where == "base" else finetuned[where])["b"][6] = float("inf")
    method = Plain(whole, ([],))
    title = "the pretrained model" if where == "base" else "the model fine-tuned on 'two'"
    with pytest.raises(StaError, match=f"{title} holds NaN or Inf in tensor 'b'"):
        run_in_memory(method, base, finetuned)
    assert "b" not in {block.name for block in method.seen[0]}


@pytest.mark.parametrize(
    "method", [*FUSION_METHODS.values(), *FORGET_METHODS.values()], ids=lambda method: method.__name__
)
def test_every_method_tells_its_settings_and_its_needs(method: type[MergeMethod]) -> None:
    made = method()
    assert made == method(**made.settings())
    assert made.title
    assert made.scope in ("position", "tensor")
    for tasks in (1, 2, 40):
        native = made.native(tasks)
        assert native is None or native.kernel(work=0) is None or callable(native.call)


def test_every_task_vector_is_the_difference_from_the_origin() -> None:
    base, origin, finetuned = ({"w": torch.tensor([value])} for value in (10.0, 1.0, 4.0))
    method = Watched(False, ([],))
    run_in_memory(method, base, {"t": finetuned}, origin=origin)
    (block,) = method.seen[0]
    assert [delta.tolist() for delta in block.deltas()] == [[3.0]]
