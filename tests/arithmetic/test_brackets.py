"""Order statistics by a guess: exact where it was right, left to the digits where it was not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sta_lightning.arithmetic import brackets
from sta_lightning.arithmetic.brackets import bracketed
from sta_lightning.arithmetic.entries import Addresses, Block
from sta_lightning.arithmetic.method import Survey
from sta_lightning.arithmetic.order import order_statistics
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.rows import NativeRows
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.arithmetic.workers import Alone, Processes, Workers
from sta_lightning.errors import StaError
from sta_lightning.kernels import Loops, loops
from sta_lightning.kernels.build import compiler
from tests.peers import as_processes

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")
State = dict[str, Tensor]
SHAPES = {"a": (300, 70), "scalar": (), "b": (9000,), "none": (0, 3)}


def fill(loops: Loops, at: Addresses, size: int, out: int) -> None:
    """The competitions of PCB: any float64 rows would do."""
    many = len(at.finetuned)
    loops.balances(at.origin, at.finetuned, [0.0] * many, [1.0] * many, True, out, size)


NATIVE = NativeRows(torch.float64, fill)


def models(tasks: int, steps: int = 0) -> tuple[State, dict[str, State]]:
    generator = torch.Generator().manual_seed(tasks)

    def drawn() -> State:
        found = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        return {name: (v * steps).round() / steps if steps else v for name, v in found.items()}

    return drawn(), {f"task{task}": drawn() for task in range(tasks)}


def survey_of(base: State, finetuned: dict[str, State], workers: Workers, peer: Processes) -> Survey:
    problem = Problem(in_memory(base), {task: in_memory(model) for task, model in finetuned.items()})
    return Survey(problem, workers, peer)


def flat(base: State, finetuned: dict[str, State]) -> np.ndarray[Any, Any]:
    """The rows over the whole model, sorted."""
    found = loops()
    assert found is not None
    whole = [torch.cat([v.flatten() for v in model.values()]) for model in (base, *finetuned.values())]
    addresses = Addresses(whole[0].data_ptr(), whole[0].data_ptr(), [v.data_ptr() for v in whole[1:]], [])
    rows = torch.empty(len(finetuned), whole[0].numel(), dtype=torch.float64)
    fill(found, addresses, whole[0].numel(), rows.data_ptr())
    return np.sort(rows.numpy(), axis=1)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_LEAST": 1, "_RUN": 8, "_RUNS": 500, "_ASIDE": 0.05}.items():
        monkeypatch.setattr(brackets, name, value)


def no_digits(*_: object) -> Iterator[object]:
    raise AssertionError("digits were counted")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("steps", [0, 2])
def test_what_lies_where_the_sample_says_takes_one_pass(
    steps: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, finetuned = models(3, steps)
    wanted = flat(base, finetuned)
    size = wanted.shape[1]
    ranks = [[1, size], [size // 2, size // 20, size // 2], [size - 1]]
    monkeypatch.setattr("sta_lightning.arithmetic.order._count", no_digits)
    with Workers(threads, loops()) as workers:
        survey = survey_of(base, finetuned, workers, Alone())
        found = order_statistics(survey, lambda block: block.deltas(), ranks, torch.float64, NATIVE)
    assert [[float(value) for value in row] for row in found] == [
        [wanted[row, k - 1] for k in its] for row, its in enumerate(ranks)
    ]


@pytest.mark.parametrize(("setting", "value"), [("_ASIDE", 0.0), ("_MOST", 100), ("_LEAST", 10**9)])
def test_where_nothing_can_be_said_the_digits_do(
    setting: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, finetuned = models(2)
    wanted = flat(base, finetuned)
    monkeypatch.setattr(brackets, setting, value)
    ranks = [[k] for k in (1234, 27_000)]
    with Workers(1, loops()) as workers:
        survey = survey_of(base, finetuned, workers, Alone())
        assert len(bracketed(survey, ranks, NATIVE)) < 2
        found = order_statistics(survey, eager, ranks, torch.float64, NATIVE)
    assert [float(row[0]) for row in found] == [wanted[row, k - 1] for row, (k,) in enumerate(ranks)]


def eager(block: Block) -> Iterator[Tensor]:
    raise AssertionError("every tensor can be read by the loop")


def test_a_sample_of_other_numbers_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Zero wherever a run begins, so that the sample knows nothing else.
    monkeypatch.setattr(brackets, "_RUNS", 10)
    base = {"w": torch.zeros(10_000)}
    finetuned = {"t": {"w": torch.linspace(0.1, 1, 10_000)}}
    finetuned["t"]["w"].view(10, 1000)[:, :8] = 0
    wanted = flat(base, finetuned)
    with Workers(1, loops()) as workers:
        survey = survey_of(base, finetuned, workers, Alone())
        assert bracketed(survey, [[5000]], NATIVE) == {}
        ((found,),) = order_statistics(survey, eager, [[5000]], torch.float64, NATIVE)
    assert float(found) == wanted[0, 4999]


def test_numbers_that_are_mostly_one_are_not_kept() -> None:
    base, finetuned = {"w": torch.zeros(50_000)}, {"t": {"w": torch.zeros(50_000)}}
    finetuned["t"]["w"][::7] = torch.linspace(-1, 1, len(finetuned["t"]["w"][::7]))
    wanted = flat(base, finetuned)
    with Workers(1, loops()) as workers:
        found = bracketed(survey_of(base, finetuned, workers, Alone()), [[20_000, 49_999]], NATIVE)
    assert {k: float(value) for (_, k), value in found.items()} == {
        20_000: wanted[0, 19_999],
        49_999: wanted[0, 49_998],
    }


def test_processes_find_the_same() -> None:
    base, finetuned = models(3)
    wanted = flat(base, finetuned)

    def work(peer: Processes) -> dict[tuple[int, int], Tensor]:
        with Workers(1, loops()) as workers:
            return bracketed(survey_of(base, finetuned, workers, peer), [[5000], [], [1]], NATIVE)

    for found in as_processes(2, work):
        assert {key: float(value) for key, value in found.items()} == {
            (0, 5000): wanted[0, 4999],
            (2, 1): wanted[2, 0],
        }


def test_a_process_without_the_loops_leaves_it_to_the_digits() -> None:
    base, finetuned = models(2)

    def work(peer: Processes) -> dict[tuple[int, int], Tensor]:
        with Workers(1, loops() if peer.rank else None) as workers:
            return bracketed(survey_of(base, finetuned, workers, peer), [[5], []], NATIVE)

    assert as_processes(2, work) == [{}, {}]


def test_what_is_not_finite_is_refused() -> None:
    base, finetuned = models(2)
    finetuned["task1"]["b"][77] = float("nan")
    with (
        Workers(1, loops()) as workers,
        pytest.raises(StaError, match="'task1' holds NaN or Inf in tensor 'b'"),
    ):
        bracketed(survey_of(base, finetuned, workers, Alone()), [[5], [5]], NATIVE)
