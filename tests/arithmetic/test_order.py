"""Order statistics over whole models, without a flat vector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta_lightning.arithmetic import order
from sta_lightning.arithmetic import states as states_module
from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.method import Survey
from sta_lightning.arithmetic.order import magnitude_statistics, order_statistics, size_of, work_dtype
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.arithmetic.workers import Alone, Processes, Workers
from sta_lightning.errors import StaError
from sta_lightning.kernels import Loops, loops
from tests.oracles import flat as oracle
from tests.peers import as_processes

State = dict[str, Tensor]


def survey_of(base: State, finetuned: dict[str, State], processes: Processes | None = None) -> Survey:
    problem = Problem(in_memory(base), {task: in_memory(model) for task, model in finetuned.items()})
    return Survey(problem, Workers(), processes or Alone())


def entries_of(block: Block) -> Iterator[Tensor]:
    return block.deltas()


@pytest.mark.parametrize("piece", [1 << 17, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [0, 3])
def test_they_are_those_of_the_sorted_flat_vector(
    dtype: torch.dtype, piece: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", piece)
    base, finetuned = oracle.models(3, seed=1, dtype=dtype, steps=steps, spread=0.25)
    survey = survey_of(base, finetuned)
    taus = np.sort(oracle.vectors(base, finetuned), axis=1)
    size = taus.shape[1]
    assert size_of(survey) == size
    assert work_dtype(survey) == dtype
    ranks = [[1, size], [size // 2, size // 2, 2], []]
    found = order_statistics(survey, entries_of, ranks)
    assert [[float(value) for value in row] for row in found] == [
        [taus[task, k - 1] for k in its] for task, its in enumerate(ranks)
    ]
    assert all(value.dtype == dtype and value.dim() == 0 for row in found for value in row)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0]),
        min_size=1,
        max_size=40,
    ),
    data=st.data(),
    wide=st.booleans(),
)
def test_any_finite_numbers(values: list[float], data: st.DataObject, wide: bool) -> None:
    kind = torch.float64 if wide else torch.float32
    cut = data.draw(st.integers(0, len(values)))
    k = data.draw(st.integers(1, len(values)))
    whole = torch.tensor(values, dtype=kind)
    finetuned = {"t": {"a": whole[:cut], "b": whole[cut:]}}
    base = {name: torch.zeros_like(value) for name, value in finetuned["t"].items()}
    ((found,),) = order_statistics(survey_of(base, finetuned), entries_of, [[k]])
    assert float(found) == sorted(values)[k - 1]


@pytest.mark.parametrize("native", [loops(), None], ids=["compiled", "eager"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_magnitudes_are_ranked_by_all_threads(
    dtype: torch.dtype, threads: int, native: Loops | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 5)
    base, finetuned = oracle.models(4, seed=2, dtype=dtype, steps=3, spread=0.25)
    sizes = np.sort(np.abs(oracle.vectors(base, finetuned)), axis=1)
    ranks = [[1, 20, sizes.shape[1]], [], [7], [3, 3]]
    with Workers(threads, native) as workers:
        problem = Problem(in_memory(base), {task: in_memory(model) for task, model in finetuned.items()})
        found = magnitude_statistics(Survey(problem, workers, Alone()), ranks)
    assert [[float(value) for value in row] for row in found] == [
        [sizes[task, k - 1] for k in its] for task, its in enumerate(ranks)
    ]


def test_types_may_differ_from_tensor_to_tensor() -> None:
    # The smallest in float64 alone; rounded to float32 it ties with the other.
    finetuned = {"t": {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([1.0 - 2**-40], dtype=torch.float64)}}
    base = {name: torch.zeros_like(value) for name, value in finetuned["t"].items()}
    (found,) = order_statistics(survey_of(base, finetuned), entries_of, [[1, 2, 3]])
    assert [float(value) for value in found] == [1.0 - 2**-40, 1.0, 3.0]


@pytest.mark.parametrize(("dtype", "passes"), [(torch.float32, 2), (torch.float64, 4)])
def test_all_ranks_of_all_tasks_come_from_the_same_passes(
    dtype: torch.dtype, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 5)
    base, finetuned = oracle.models(4, dtype=dtype)
    seen: list[Block] = []

    def rows(block: Block) -> Iterator[Tensor]:
        seen.append(block)
        return (delta.abs() for delta in block.deltas())

    survey = survey_of(base, finetuned)
    order_statistics(survey, rows, [[1, 20, 50, size_of(survey)]] * 4)
    assert sum(block.base.numel() for block in seen) == passes * size_of(survey)
    assert max(block.base.numel() for block in seen) == 5


@pytest.mark.parametrize("size", [2, 3, 20])
def test_processes_share_the_tensors_and_learn_the_same(size: int) -> None:
    base, finetuned = oracle.models(2, seed=4)
    ranks = [[3, 50], [7]]
    alone = order_statistics(survey_of(base, finetuned), entries_of, ranks)
    looked: list[tuple[int, str]] = []

    def work(peer: Any) -> list[list[Tensor]]:
        def rows(block: Block) -> Iterator[Tensor]:
            looked.append((peer.rank, block.name))
            return block.deltas()

        return order_statistics(survey_of(base, finetuned, peer), rows, ranks)

    assert as_processes(size, work) == [alone] * size
    assert len({rank for rank, _ in looked}) == min(size, len(oracle.SHAPES) - 1)
    assert len(set(looked)) == len(oracle.SHAPES) - 1  # every tensor with entries on one process


def test_an_error_on_one_process_is_one_on_all() -> None:
    base, finetuned = oracle.models(2)
    finetuned["task01"]["blocks.1.w"][0, 0] = float("nan")

    def work(peer: Any) -> Any:
        return order_statistics(survey_of(base, finetuned, peer), entries_of, [[1], [1]])

    for outcome in as_processes(2, work):
        assert isinstance(outcome, StaError)
        assert "fine-tuned on 'task01' holds NaN or Inf in tensor 'blocks.1.w'" in str(outcome)


def test_a_digit_has_as_many_values_as_are_counted() -> None:
    assert order.count_digits(torch.ones(1), 16, 0).shape == (order.BINS,)


def test_whole_tensors_come_in_their_shape() -> None:
    base, finetuned = oracle.models(1)
    survey = survey_of(base, finetuned)
    (block,) = survey.entries("conv1.weight").blocks(whole=True)
    assert block.base.shape == (3, 2, 2, 2)
    assert list(survey.entries("empty").blocks(whole=True)) == []


@pytest.mark.parametrize("native", [loops(), None], ids=["compiled", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_of_both_signs_are_counted_in_parts(
    dtype: torch.dtype, native: Loops | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 20)
    monkeypatch.setattr(states_module, "_CACHED_ON_CPU", 3)
    base, finetuned = oracle.models(2, seed=3, dtype=dtype)
    sorted_rows = np.sort(oracle.vectors(base, finetuned), axis=1)
    ranks = [list(range(1, sorted_rows.shape[1] + 1, 9))] * 2
    with Workers(3, native) as workers:
        problem = Problem(in_memory(base), {task: in_memory(model) for task, model in finetuned.items()})
        found = order_statistics(Survey(problem, workers, Alone()), entries_of, ranks)
    assert [[float(value) for value in row] for row in found] == [
        [row[k - 1] for k in its] for row, its in zip(sorted_rows, ranks, strict=True)
    ]
