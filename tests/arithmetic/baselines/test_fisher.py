"""Fisher merging: the oracle, what its definition implies, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta_lightning.arithmetic import Dare, average, merge
from sta_lightning.arithmetic import states as states_module
from sta_lightning.arithmetic.baselines.fisher import Fisher
from sta_lightning.arithmetic.method import Survey
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.arithmetic.workers import Workers
from sta_lightning.errors import StaError
from tests.arithmetic.by_name import by_name
from tests.oracles import spectral as oracle
from tests.peers import as_processes

fisher_merge = by_name("fisher")

State = dict[str, Tensor]


def squares(
    finetuned: dict[str, State], seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, State]:
    """A Fisher information of every model, of another size for every task, some of it zero."""
    scores = {}
    for number, (task, model) in enumerate(finetuned.items()):
        generator = torch.Generator().manual_seed(100 * seed + number)
        scores[task] = {
            name: (
                10.0**-number
                * torch.randn(value.shape, generator=generator, dtype=torch.float64).relu().square()
            ).to(dtype)
            for name, value in model.items()
            if value.is_floating_point()
        }
    return scores


def expected(
    finetuned: dict[str, State], scores: dict[str, State], floor: float, normalized: bool
) -> oracle.State:
    models = [oracle.floats(finetuned[task]) for task in sorted(finetuned)]
    found = [oracle.floats(scores[task]) for task in sorted(finetuned)]
    return oracle.fisher(models, found, floor, normalized)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("floor", [1e-6, 0.1])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_fisher_is_the_oracle(tasks: int, normalized: bool, floor: float, dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(tasks, seed=tasks, dtype=dtype)
    scores = squares(finetuned, tasks)
    wide = None if dtype == torch.float64 else torch.float32
    got = fisher_merge(base, finetuned, scores, floor=floor, normalized=normalized, dtype=wide)
    oracle.close(got, expected(finetuned, scores, floor, normalized))
    assert list(got) == list(base)
    assert torch.equal(got["steps"], base["steps"])


@pytest.mark.parametrize("normalized", [True, False])
def test_the_floor_may_be_in_the_unit_of_the_mean_over_samples(normalized: bool) -> None:
    base, finetuned = oracle.models(3)
    scores = squares(finetuned)
    means = {
        task: {n: v / 64 if v.is_floating_point() else v for n, v in state.items()}
        for task, state in scores.items()
    }
    got = fisher_merge(base, finetuned, scores, floor=0.01, samples=64, normalized=normalized)
    oracle.close(got, expected(finetuned, means, 0.01, normalized))


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, "1"])
def test_a_number_of_samples_that_is_none_is_refused(samples: object) -> None:
    with pytest.raises(StaError, match=r"samples, over which.*integer in \[1, inf\)"):
        Fisher(samples=samples)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_may_have_another_type(dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(3)
    scores = squares(finetuned, dtype=dtype)
    oracle.close(fisher_merge(base, finetuned, scores), expected(finetuned, scores, 1e-6, True))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(1, 5), normalized=st.booleans())
def test_equal_information_is_the_average(seed: int, tasks: int, normalized: bool) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    one = squares({"task1": finetuned["task1"]}, seed)["task1"]
    got = fisher_merge(base, finetuned, dict.fromkeys(finetuned, one), normalized=normalized)
    oracle.close(got, oracle.floats(average(base, finetuned)), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(1, 5))
def test_identical_models_stay(seed: int, tasks: int) -> None:
    base, finetuned = oracle.models(1, seed=seed)
    same = {f"t{i}": finetuned["task1"] for i in range(tasks)}
    oracle.close(fisher_merge(base, same, squares(same, seed)), oracle.floats(finetuned["task1"]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(2, 5), factor=st.floats(1e-3, 1e3))
def test_a_task_s_unit_does_not_count_if_it_is_normalised(seed: int, tasks: int, factor: float) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    scores = squares(finetuned, seed, torch.float64)
    other = {**scores, "task1": {name: factor * value for name, value in scores["task1"].items()}}
    got = fisher_merge(base, finetuned, other, floor=0.0)
    oracle.close(got, oracle.floats(fisher_merge(base, finetuned, scores, floor=0.0)), atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10_000), tasks=st.integers(2, 5))
def test_the_result_lies_between_the_models_in_any_order(data: st.DataObject, seed: int, tasks: int) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    scores = squares(finetuned, seed)
    got = fisher_merge(base, finetuned, scores)
    for name in oracle.SHAPES:
        stacked = torch.stack([model[name] for model in finetuned.values()])
        assert bool((got[name] <= stacked.amax(0) + 1e-12).all())
        assert bool((got[name] >= stacked.amin(0) - 1e-12).all())
    names = dict(zip(sorted(finetuned), data.draw(st.permutations(sorted(finetuned))), strict=True))
    renamed = fisher_merge(
        base,
        {new: finetuned[old] for new, old in names.items()},
        {new: scores[old] for new, old in names.items()},
    )
    oracle.close(renamed, oracle.floats(got), atol=1e-12)


def test_what_no_task_uses_is_the_mean() -> None:
    base = {"w": torch.zeros(3)}
    finetuned = {"a": {"w": torch.tensor([1.0, 2.0, 3.0])}, "b": {"w": torch.tensor([3.0, 6.0, 5.0])}}
    scores = {"a": {"w": torch.tensor([0.0, 1.0, 1.0])}, "b": {"w": torch.tensor([0.0, 0.0, 1.0])}}
    for floor in (0.0, 1e-6):
        got = fisher_merge(base, finetuned, scores, floor=floor, normalized=False)["w"]
        torch.testing.assert_close(got, torch.tensor([2.0, 2.0, 4.0]), rtol=0, atol=1e-5)


def test_tiny_information_counts_as_much() -> None:
    base, finetuned = oracle.models(2, dtype=torch.float64)
    scores = squares(finetuned, dtype=torch.float64)
    tiny = {task: {n: v * 1e-60 for n, v in found.items()} for task, found in scores.items()}
    for normalized in (True, False):
        wanted = fisher_merge(base, finetuned, scores, floor=0.0, normalized=normalized)
        got = fisher_merge(base, finetuned, tiny, floor=0.0, normalized=normalized)
        oracle.close(got, oracle.floats(wanted), atol=1e-9)


def test_pieces_and_processes_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = oracle.models(3)
    scores = squares(finetuned)
    whole = fisher_merge(base, finetuned, scores)
    problem = Problem(
        in_memory(base),
        {task: in_memory(model) for task, model in finetuned.items()},
        {task: in_memory(found) for task, found in scores.items()},
    )

    def work(peer: Any) -> list[float]:
        with Workers() as workers:
            return Fisher().prepare(Survey(problem, workers, peer))

    shares = as_processes(2, work)
    assert shares[0] == shares[1]
    assert sum(shares[0]) == pytest.approx(1.0)
    assert shares[0] == sorted(shares[0])  # every task's information is a tenth of the one before
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 4)
    oracle.close(fisher_merge(base, finetuned, scores), oracle.floats(whole), atol=1e-12)


def test_it_has_its_name_and_goes_behind_dare() -> None:
    base, finetuned = oracle.models(2)
    scores = squares(finetuned)
    got = merge("fisher", base, finetuned, scores, settings={"floor": 0.1, "normalized": False}).weights
    wanted = fisher_merge(base, finetuned, scores, floor=0.1, normalized=False)
    assert all(torch.equal(got[name], value) for name, value in wanted.items())
    thin = merge("fisher", base, finetuned, scores, dare=Dare(0.5)).weights
    assert all(bool(value.isfinite().all()) for value in thin.values())
    assert merge("fisher", {"n": torch.tensor(1)}, {"a": {"n": torch.tensor(2)}}, {"a": {}}).weights == {
        "n": torch.tensor(1)
    }


def test_what_is_no_fisher_information_is_refused() -> None:
    base, finetuned = oracle.models(2)
    scores = squares(finetuned)
    with pytest.raises(StaError, match=r"reads .fisher. of every entry, and none was given"):
        merge("fisher", base, finetuned)
    negative = {**scores, "task1": {**scores["task1"], "ln.bias": -torch.ones(7)}}
    with pytest.raises(StaError, match=r"Fisher information is negative in tensor 'ln.bias'"):
        fisher_merge(base, finetuned, negative)
    nothing = {name: torch.zeros_like(value) for name, value in scores["task2"].items()}
    with pytest.raises(StaError, match=r"Fisher information of task 'task2' has the norm 0.0"):
        fisher_merge(base, finetuned, {**scores, "task2": nothing})
    oracle.close(
        fisher_merge(base, finetuned, {**scores, "task2": nothing}, normalized=False),
        expected(finetuned, {**scores, "task2": nothing}, 1e-6, False),
    )
    broken = {**scores, "task2": {**scores["task2"], "scale": torch.tensor(float("nan"))}}
    for normalized in (True, False):
        with pytest.raises(StaError, match=r"importance of task 'task2' holds NaN or Inf in tensor 'scale'"):
            fisher_merge(base, finetuned, broken, normalized=normalized)


@pytest.mark.parametrize("floor", [-1e-6, float("nan"), float("inf"), "0", False])
def test_a_floor_out_of_range_is_refused(floor: object) -> None:
    with pytest.raises(StaError, match=r"floor.*must be a number in \[0, inf\), and is"):
        Fisher(floor)  # type: ignore[arg-type]


def test_normalized_is_true_or_false() -> None:
    with pytest.raises(StaError, match="normalized='model' was asked for; choose one of True, False"):
        Fisher(normalized="model")  # type: ignore[arg-type]
