"""TIES: the oracle, what its definition implies, and another implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta_lightning.arithmetic import average, merge, task_arithmetic
from sta_lightning.arithmetic import states as states_module
from sta_lightning.arithmetic.baselines.ties import Ties, ties_vectors
from sta_lightning.arithmetic.dare import Dare
from sta_lightning.arithmetic.memory import MemorySink, run_in_memory
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import run
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.errors import StaError
from tests.arithmetic.by_name import by_name
from tests.oracles import flat as oracle
from tests.peers import as_processes

ties = by_name("ties")

KEEPS = [0.01, 0.2, 0.5, 0.77, 1.0]


@pytest.mark.parametrize("how", ["mean", "sum"])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("tasks", [1, 2, 3, 6, 8])
def test_it_is_the_oracle(tasks: int, keep: float, how: Any) -> None:
    base, finetuned = oracle.models(tasks, seed=tasks)
    got = ties(base, finetuned, keep=keep, merge=how, scale=0.7)
    wanted = oracle.flat(base) + 0.7 * oracle.ties(oracle.vectors(base, finetuned), keep, how)
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=1e-6)
    assert list(got) == list(base)
    assert int(got["steps"]) == 7


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    tasks=st.integers(1, 5),
    keep=st.floats(0.001, 1.0),
    how=st.sampled_from(["mean", "sum"]),
    steps=st.integers(1, 4),
)
def test_it_is_the_oracle_where_entries_tie_cancel_and_vanish(
    seed: int, tasks: int, keep: float, how: Any, steps: int
) -> None:
    base, finetuned = oracle.models(tasks, seed, steps=steps, spread=0.25)
    taus = oracle.vectors(base, finetuned)
    got = ties(base, finetuned, keep=keep, merge=how, scale=1.0)
    np.testing.assert_allclose(
        oracle.flat(got), oracle.flat(base) + oracle.ties(taus, keep, how), rtol=0, atol=1e-6
    )
    parts = ties_vectors(base, finetuned, keep=keep)
    np.testing.assert_array_equal(
        np.stack([oracle.flat(parts[t]) for t in sorted(parts)]), oracle.ties_vectors(taus, keep)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    tasks=st.integers(1, 5),
    keep=st.floats(0.001, 1.0),
    how=st.sampled_from(["mean", "sum"]),
    steps=st.integers(0, 4),
)
def test_compiled_or_not_the_bits_are_the_same(
    dtype: torch.dtype, seed: int, tasks: int, keep: float, how: Any, steps: int
) -> None:
    base, finetuned = oracle.models(tasks, seed, dtype=dtype, steps=steps, spread=0.25)
    method = Ties(keep, how, 0.7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states_module, "_PIECE_ON_CPU", 7)
        patch.setattr(torch, "get_num_threads", lambda: 3)
        found = [
            run_in_memory(method, base, finetuned, dare=dare, compiled=compiled).weights
            for dare in (None, Dare(0.3))
            for compiled in (True, False)
        ]
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert all(torch.equal(first[name], value) for name, value in second.items())


def test_compiled_loops_are_exact_at_thresholds_of_float64() -> None:
    # A float64 tensor makes the threshold one that float32 cannot hold: just above an entry of the
    # float32 tensor, which is therefore dropped, or just below it.
    for shift, kept in ((2**-40, 0.0), (-(2**-40), 1.0)):
        finetuned = {"t": {"a": torch.tensor([1.0, 0.1]), "b": torch.tensor([1.0 + shift, 3.0]).double()}}
        finetuned["t"]["b"][0] = 1.0 + shift
        base = {name: torch.zeros_like(value) for name, value in finetuned["t"].items()}
        keep = 0.49 if kept == 0 else 0.5  # from the second largest on
        for compiled in (True, False):
            got = run_in_memory(Ties(keep, "sum", 1.0), base, finetuned, compiled=compiled).weights
            assert got["a"].tolist() == [kept, 0.0]


@pytest.mark.parametrize("compiled", [True, False])
def test_what_cannot_be_ranked_is_refused_in_every_pass(compiled: bool) -> None:
    base, finetuned = oracle.models(2)
    finetuned["task01"]["blocks.1.w"][0, 0] = float("nan")
    for keep in (0.2, 1.0):  # which needs no rank
        with pytest.raises(StaError, match=r"'task01' holds NaN or Inf in tensor 'blocks.1.w'"):
            run_in_memory(Ties(keep), base, finetuned, compiled=compiled)


def test_float64_models_keep_their_digits() -> None:
    base, finetuned = oracle.models(3, dtype=torch.float64)
    got = ties(base, finetuned, scale=1.0)
    wanted = oracle.flat(base) + oracle.ties(oracle.vectors(base, finetuned), 0.2, "mean")
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=1e-14)


def test_a_threshold_is_not_rounded_to_the_type_of_a_narrower_tensor() -> None:
    near = 1.0 + 2**-40
    base = {"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.float64)}
    finetuned = {"t": {"a": torch.tensor([1.0, 0.5]), "b": torch.tensor([near, 2.0], dtype=torch.float64)}}
    got = ties_vectors(base, finetuned, keep=0.25)  # k = 3: the threshold is 1 + 2^-40, which is 1 in float32
    assert got["t"]["a"].tolist() == [0.0, 0.0]
    assert got["t"]["b"].tolist() == [near, 2.0]


def one(*rows: list[float]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Models of one tensor whose task vectors are the rows."""
    return {"w": torch.zeros(len(rows[0]))}, {f"t{i}": {"w": torch.tensor(row)} for i, row in enumerate(rows)}


def test_how_many_are_kept() -> None:
    base, finetuned = one([float(i) for i in range(1, 11)])
    # d = 10: the k-th smallest itself is kept, so one more than floor(d * keep).
    for keep, kept in ((0.05, 1), (0.2, 3), (0.25, 3), (0.9, 10), (1.0, 10)):
        assert int((ties(base, finetuned, keep=keep)["w"] != 0).sum()) == kept
    base, finetuned = one([1.0, 2.0, 2.0, 2.0, 3.0])
    assert ties(base, finetuned, keep=0.2, scale=1.0)["w"].tolist() == [0.0, 2.0, 2.0, 2.0, 3.0]


def test_the_magnitudes_of_all_tensors_are_ranked_together() -> None:
    base = {"small": torch.zeros(4), "large": torch.zeros(4)}
    finetuned = {"t": {"small": torch.full((4,), 0.1), "large": torch.full((4,), 1.0)}}
    got = ties(base, finetuned, keep=0.4, scale=1.0)
    assert got["small"].tolist() == [0.0] * 4
    assert got["large"].tolist() == [1.0] * 4


def test_positions_that_cancel_take_the_sign_of_the_majority() -> None:
    base, finetuned = one([1.0, 3.0, 2.0], [-1.0, 3.0, 2.0])
    assert ties(base, finetuned, keep=1.0, scale=1.0)["w"].tolist() == [1.0, 3.0, 2.0]
    base, finetuned = one([1.0, -3.0, -2.0], [-1.0, -3.0, -2.0])
    assert ties(base, finetuned, keep=1.0, scale=1.0)["w"].tolist() == [-1.0, -3.0, -2.0]
    base, finetuned = one([1.0, -3.0, 2.0], [-1.0, -3.0, 2.0])  # as many plus as minus
    assert ties(base, finetuned, keep=1.0, scale=1.0)["w"].tolist() == [0.0, -3.0, 2.0]


def test_rounding_elects_no_sign() -> None:
    # In float32, added up from the left, the first column is zero and elects the majority, minus.
    base, finetuned = one([2.0**25, -1.0, -1.0], [1.0, -1.0, -1.0], [-(2.0**25), -1.0, -1.0])
    assert ties(base, finetuned, keep=1.0, merge="sum", scale=1.0)["w"].tolist() == [2.0**25, -3.0, -3.0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), tasks=st.integers(1, 5), sign=st.sampled_from([1.0, -1.0]))
def test_all_of_one_sign_and_all_kept_is_the_mean(seed: int, tasks: int, sign: float) -> None:
    base, finetuned = oracle.models(tasks, seed)
    for model in finetuned.values():
        for name in oracle.names(base):
            model[name] = base[name] + sign * ((model[name] - base[name]).abs() + 0.01)
    got = ties(base, finetuned, keep=1.0, scale=1.0)
    mean = average(base, finetuned)
    total = task_arithmetic(base, finetuned, scale=1.0)
    np.testing.assert_allclose(oracle.flat(got), oracle.flat(mean), rtol=0, atol=1e-6)
    got = ties(base, finetuned, keep=1.0, merge="sum", scale=1.0)
    np.testing.assert_allclose(oracle.flat(got), oracle.flat(total), rtol=0, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), keep=st.floats(0.01, 1.0), order=st.permutations(range(4)))
def test_task_order_and_tensor_order_change_no_bit(seed: int, keep: float, order: list[int]) -> None:
    base, finetuned = oracle.models(4, seed)
    first = ties(base, finetuned, keep=keep)
    shuffled = {f"task{i:02}": dict(reversed(finetuned[f"task{i:02}"].items())) for i in order}
    second = ties(dict(reversed(base.items())), shuffled, keep=keep)
    assert all(torch.equal(first[name], second[name]) for name in base)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), keep=st.floats(0.01, 1.0))
def test_turning_all_signs_turns_the_result(seed: int, keep: float) -> None:
    base, finetuned = oracle.models(3, seed, steps=2, spread=0.25)
    turned = {
        task: {n: 2 * base[n] - v if v.is_floating_point() else v for n, v in model.items()}
        for task, model in finetuned.items()
    }
    there, back = ties_vectors(base, finetuned, keep=keep), ties_vectors(base, turned, keep=keep)
    assert all(torch.equal(there[t][n], -back[t][n]) for t in there for n in there[t])


def test_one_task_is_its_trimmed_vector() -> None:
    base, finetuned = oracle.models(1)
    taus = oracle.vectors(base, finetuned)
    got = ties(base, finetuned, keep=0.3, scale=1.0)
    np.testing.assert_allclose(
        oracle.flat(got), oracle.flat(base) + oracle.trimmed(taus, 0.3)[0], rtol=0, atol=1e-6
    )
    full = ties(base, finetuned, keep=1.0, scale=1.0)
    np.testing.assert_allclose(oracle.flat(full), oracle.flat(finetuned["task00"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_zero_vectors_change_no_bit(dtype: torch.dtype) -> None:
    base, _ = oracle.models(0, dtype=dtype)
    got = ties(base, {t: {n: v.clone() for n, v in base.items()} for t in "ab"})
    assert all(torch.equal(got[name], base[name]) and got[name].dtype == base[name].dtype for name in base)


def test_models_without_entries_are_merged() -> None:
    base = {"empty": torch.zeros(0, 2), "n": torch.tensor(1)}
    got = ties(base, {"a": base, "b": base})
    assert got["empty"].shape == (0, 2)
    assert int(got["n"]) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pieces_do_not_show(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = oracle.models(4, seed=2, dtype=dtype)
    whole, parts = ties(base, finetuned), ties_vectors(base, finetuned)
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 4)
    again, parts_again = ties(base, finetuned), ties_vectors(base, finetuned)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert all(torch.equal(parts[t][n], parts_again[t][n]) for t in parts for n in parts[t])


def test_processes_make_the_same_model_together() -> None:
    base, finetuned = oracle.models(3, seed=5)
    wanted = ties(base, finetuned)
    sinks = [MemorySink(base, None) for _ in range(2)]
    for sink in sinks:
        for name in oracle.names(base):
            sink.weights[name].fill_(float("nan"))

    def work(peer: Any) -> Any:
        problem = Problem(in_memory(base), {task: in_memory(model) for task, model in finetuned.items()})
        return run(Ties(), problem, sinks[peer.rank], processes=peer)

    assert as_processes(2, work) == [{}, {}]
    for name in oracle.names(base):
        written = [sink.weights[name] for sink in sinks if not sink.weights[name].isnan().any()]
        assert any(torch.equal(one, wanted[name]) for one in written)


def test_the_vectors_add_up_to_the_disjoint_sum() -> None:
    base, finetuned = oracle.models(4, seed=3)
    parts = ties_vectors(base, finetuned, keep=0.4)
    got = ties(base, finetuned, keep=0.4, merge="sum", scale=1.0)
    assert list(parts) == list(finetuned)
    for name in oracle.names(base):
        assert [part[name].shape for part in parts.values()] == [base[name].shape] * 4
        torch.testing.assert_close(base[name] + sum(part[name] for part in parts.values()), got[name])
    assert all("steps" not in part for part in parts.values())


def test_by_name_it_is_the_function() -> None:
    base, finetuned = oracle.models(3)
    got = merge("ties", base, finetuned, scale=0.3, settings={"keep": 0.5, "merge": "sum"}).weights
    wanted = ties(base, finetuned, keep=0.5, merge="sum", scale=0.3)
    assert all(torch.equal(got[name], wanted[name]) for name in base)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, 20, float("nan"), "0.2", None, True])
def test_shares_that_are_none_are_refused(keep: Any) -> None:
    with pytest.raises(StaError, match=r"keep must be a number in \(0, 1\]"):
        Ties(keep=keep)


def test_other_settings_are_refused() -> None:
    with pytest.raises(StaError, match=r"merge='median' was asked for; choose one of 'mean', 'sum'"):
        Ties(merge="median")  # type: ignore[arg-type]
    with pytest.raises(StaError, match="scale must be a finite number"):
        Ties(scale=float("inf"))


def test_models_that_do_not_fit_are_refused() -> None:
    base, finetuned = oracle.models(2)
    for call in (ties, ties_vectors):
        with pytest.raises(StaError, match="nothing to merge"):
            call(base, {})
        with pytest.raises(StaError, match="fine-tuned on 'task00' does not match"):
            call(base, {"task00": {"other": torch.zeros(1)}})
        broken = {"task00": {**finetuned["task00"], "blocks.0.b": torch.full((6,), float("nan"))}}
        with pytest.raises(StaError, match=r"fine-tuned on 'task00'.*NaN or Inf.*'blocks.0.b'"):
            call(base, broken)


# Another implementation. Its trimming keeps floor(d * keep) entries of one tensor, one fewer than
# the authors' code.


@pytest.mark.parametrize("tasks", [1, 2, 5])
@pytest.mark.parametrize("keep", [0.1, 0.4, 0.9])
def test_peft_has_the_same(tasks: int, keep: float) -> None:
    utils = pytest.importorskip("peft.utils.merge_utils")
    generator = torch.Generator().manual_seed(tasks)
    size, weights = 1000, torch.ones(tasks)
    taus = [torch.randn(20, 50, generator=generator) for _ in range(tasks)]
    base = {"w": torch.zeros(20, 50)}
    finetuned = {f"{i}": {"w": tau} for i, tau in enumerate(taus)}
    fewer = keep - 1 / size + 1e-9
    wanted = utils.ties(taus, weights, keep)
    torch.testing.assert_close(ties(base, finetuned, keep=fewer, scale=1.0)["w"], wanted)
    if tasks == 1:  # all agree: what is left is the trimming
        wanted = utils.magnitude_prune(taus, weights, keep)
        torch.testing.assert_close(ties(base, finetuned, keep=fewer, scale=1.0)["w"], wanted)


def test_peft_has_the_same_task_arithmetic() -> None:
    utils = pytest.importorskip("peft.utils.merge_utils")
    taus = list(torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(0)))
    got = task_arithmetic(
        {"w": torch.zeros(6, 7)}, {f"{i}": {"w": tau} for i, tau in enumerate(taus)}, scale=0.3
    )
    torch.testing.assert_close(got["w"], utils.task_arithmetic(taus, torch.full((3,), 0.3)))
