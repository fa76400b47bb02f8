"""DARE in front of the methods: what is dropped, what is left, and that reading does not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta_lightning.arithmetic import Dare, average, fuse, merge, task_arithmetic
from sta_lightning.arithmetic import dare as dare_module
from sta_lightning.arithmetic import states as states_module
from sta_lightning.arithmetic.fusion import Sta
from sta_lightning.arithmetic.linear import Average, TaskArithmetic
from sta_lightning.arithmetic.memory import MemorySink, run_in_memory
from sta_lightning.arithmetic.method import MergeMethod
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import run
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.errors import StaError
from sta_lightning.kernels import loops
from sta_lightning.kernels.build import compiler
from tests.arithmetic.by_name import by_name
from tests.oracles import flat as oracle
from tests.peers import as_processes

ties = by_name("ties")

State = dict[str, Tensor]
METHODS = ["average", "task_arithmetic", "ties", "sta", "pcb", "consensus", "lines"]


def thinned(base: State, finetuned: dict[str, State], dare: Dare) -> np.ndarray:
    """The oracle: the flat task vectors times the masks, divided by what is left."""
    taus = oracle.vectors(base, finetuned)
    masks = np.stack(
        [
            np.concatenate(
                [
                    dare.mask(f"{task}:{name}", slice(0, base[name].numel())).numpy()
                    for name in oracle.names(base)
                ]
            )
            for task in sorted(finetuned)
        ]
    )
    return taus * masks / (1 - dare.rate if dare.rescale else 1)


def importance_of(base: State, finetuned: dict[str, State]) -> dict[str, State]:
    generator = torch.Generator().manual_seed(9)
    return {
        task: {name: torch.rand(base[name].shape, generator=generator) for name in oracle.names(base)}
        for task in finetuned
    }


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_in_front_of_the_linear_methods_it_is_the_oracle(rate: float, rescale: bool) -> None:
    base, finetuned = oracle.models(3, seed=2)
    dare = Dare(rate, rescale, seed=4)
    taus = thinned(base, finetuned, dare)
    for method, wanted in (("average", taus.mean(0)), ("task_arithmetic", 0.4 * taus.sum(0))):
        got = merge(method, base, finetuned, dare=dare).weights
        np.testing.assert_allclose(oracle.flat(got), oracle.flat(base) + wanted, rtol=0, atol=1e-6)
        assert list(got) == list(base)
        assert int(got["steps"]) == 7


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_in_front_of_ties_it_is_the_oracle(rate: float) -> None:
    base, finetuned = oracle.models(4, seed=3)
    dare = Dare(rate, seed=1)
    got = merge("ties", base, finetuned, dare=dare, scale=1.0).weights
    wanted = oracle.flat(base) + oracle.ties(thinned(base, finetuned, dare), 0.2, "mean")
    np.testing.assert_allclose(oracle.flat(got), wanted, rtol=0, atol=1e-6)


def test_in_front_of_sta_the_masks_stay_and_the_vectors_are_thinned() -> None:
    base, finetuned = oracle.models(3, seed=4)
    scores = importance_of(base, finetuned)
    dare = Dare(0.5)
    got = merge("sta", base, finetuned, scores, dare=dare)
    assert got.kept == merge("sta", base, finetuned, scores).kept
    left = thinned(base, finetuned, dare)
    at, models_left = 0, {task: dict(base) for task in finetuned}
    for name in oracle.names(base):
        size = base[name].numel()
        for task, row in zip(sorted(finetuned), left, strict=True):
            piece = torch.from_numpy(row[at : at + size]).reshape(base[name].shape)
            models_left[task][name] = base[name].double() + piece
        at += size
    wanted = fuse(base, models_left, scores)
    for name in oracle.names(base):
        torch.testing.assert_close(got.weights[name], wanted[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_dropping_nothing_changes_no_bit(method: str, dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(3, dtype=dtype)
    scores = importance_of(base, finetuned)
    plain = merge(method, base, finetuned, scores)
    got = merge(method, base, finetuned, scores, dare=Dare(0.0))
    assert all(torch.equal(got.weights[name], plain.weights[name]) for name in base)
    assert got.kept == plain.kept


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.99])
def test_the_rate_is_the_share_that_is_dropped(rate: float) -> None:
    size = 400_000
    kept = float(Dare(rate, seed=3).mask("task:w", slice(0, size)).double().mean())
    assert abs(kept - (1 - rate)) < 5 * (rate * (1 - rate) / size) ** 0.5


def test_what_is_left_is_rescaled_so_that_the_mean_stays() -> None:
    base, finetuned = {"w": torch.zeros(200_000)}, {"t": {"w": torch.ones(200_000)}}
    got = merge("average", base, finetuned, dare=Dare(0.75)).weights["w"]
    assert set(got.tolist()) == {0.0, 4.0}
    assert float(got.mean()) == pytest.approx(1.0, abs=0.02)
    plain = merge("average", base, finetuned, dare=Dare(0.75, rescale=False)).weights["w"]
    assert set(plain.tolist()) == {0.0, 1.0}
    assert torch.equal(plain != 0, got != 0)


def test_over_many_seeds_every_entry_keeps_its_expectation() -> None:
    base, finetuned = oracle.models(2, seed=1)
    wanted = oracle.flat(average(base, finetuned))
    draws = [
        oracle.flat(merge("average", base, finetuned, dare=Dare(0.5, seed=seed)).weights)
        for seed in range(400)
    ]
    spread = np.abs(oracle.vectors(base, finetuned)).sum(0) / 2  # of one draw, at most
    assert np.all(np.abs(np.mean(draws, axis=0) - wanted) < 5 * spread / 20 + 1e-6)


def test_seed_task_and_name_make_the_mask_and_nothing_else() -> None:
    dare = Dare(0.5, seed=1)
    whole = dare.mask("a:w", slice(0, 1000))
    assert torch.equal(whole, Dare(0.5, seed=1).mask("a:w", slice(0, 1000)))
    for other in (Dare(0.5, seed=2).mask("a:w", slice(0, 1000)), dare.mask("b:w", slice(0, 1000))):
        assert 0.4 < float((other == whole).double().mean()) < 0.6
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(whole, dare.mask("a:w", slice(0, 1000)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(state, torch.get_rng_state())


def test_a_higher_rate_drops_more_of_the_same() -> None:
    low, high = (Dare(rate).mask("a:w", slice(0, 5000)) for rate in (0.3, 0.6))
    assert torch.equal(low & high, high)


def test_the_tasks_are_thinned_each_by_itself() -> None:
    base, finetuned = oracle.models(3)
    alone = merge("task_arithmetic", base, {"task01": finetuned["task01"]}, dare=Dare(0.5)).weights
    masks = thinned(base, finetuned, Dare(0.5))
    np.testing.assert_array_equal(
        oracle.flat(alone) != oracle.flat(base), (masks[1] != 0) & (np.abs(masks[1]) > 1e-6)
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rate=st.floats(0.0, 0.99))
def test_any_piece_is_a_piece_of_the_one_mask(data: st.DataObject, rate: float) -> None:
    chunk = dare_module._CHUNK
    size = 2 * chunk + 77
    dare = Dare(rate)
    edges = st.integers(0, size) | st.sampled_from([0, chunk - 1, chunk, chunk + 1, 2 * chunk, size])
    start, stop = sorted((data.draw(edges), data.draw(edges)))
    whole = dare.mask("t:w", slice(0, size))
    piece = dare.mask("t:w", slice(start, stop))
    assert piece.dtype == torch.bool
    assert torch.equal(piece, whole[start:stop])


@pytest.mark.parametrize("method", METHODS)
def test_pieces_do_not_show(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = oracle.models(3, seed=2)
    scores = importance_of(base, finetuned)
    whole = merge(method, base, finetuned, scores, dare=Dare(0.5)).weights
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 16)
    again = merge(method, base, finetuned, scores, dare=Dare(0.5)).weights
    for name in whole:
        torch.testing.assert_close(whole[name], again[name], rtol=0, atol=1e-6)


def test_processes_drop_the_same() -> None:
    base, finetuned = oracle.models(3, seed=5)
    wanted = merge("task_arithmetic", base, finetuned, dare=Dare(0.5)).weights
    sinks = [MemorySink(base, None) for _ in range(2)]
    for sink in sinks:
        for name in oracle.names(base):
            sink.weights[name].fill_(float("nan"))

    def work(peer: Any) -> Any:
        problem = Problem(in_memory(base), {task: in_memory(model) for task, model in finetuned.items()})
        return run(TaskArithmetic(), Dare(0.5).drops(problem), sinks[peer.rank], processes=peer)

    assert as_processes(2, work) == [{}, {}]
    for name in oracle.names(base):
        written = [sink.weights[name] for sink in sinks if not sink.weights[name].isnan().any()]
        assert any(torch.equal(one, wanted[name]) for one in written)


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.1, 1 / 3, 0.5, 0.9])
def test_the_compiled_loop_drops_the_same_bits(rate: float, rescale: bool) -> None:
    assert loops() is not None
    drawn = torch.Generator().manual_seed(1)
    base = {"w": torch.randn(140_000, generator=drawn)}
    finetuned = {t: {"w": base["w"] + torch.randn(140_000, generator=drawn)} for t in "ab"}
    finetuned["a"]["w"][3], finetuned["a"]["w"][99_999] = float("nan"), float("inf")
    problem = Problem(in_memory(base), {task: in_memory(model) for task, model in finetuned.items()})
    (name,) = problem.names
    source = Dare(rate, rescale, seed=5).drops(problem).finetuned["a"][name]
    # Within a chunk of one source of numbers, over its end, from it on.
    for piece in (slice(0, 140_000), slice(0, 9), slice(65_000, 66_000), slice(65_536, 131_073), slice(4, 4)):
        got = source.read_float32(piece, torch.empty(piece.stop - piece.start))
        wanted = source.read(piece, torch.float32)
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(got.nan_to_num().signbit(), wanted.nan_to_num().signbit())


@pytest.mark.parametrize("method", [TaskArithmetic(), Average(), Sta()], ids=lambda method: method.title)
def test_compiled_loops_take_no_vector_from_the_wrong_model(method: MergeMethod) -> None:
    base, finetuned = oracle.models(3)
    scores = importance_of(base, finetuned) if method.needs_importance else None
    results = [
        run_in_memory(method, base, finetuned, scores, dare=Dare(0.5), compiled=compiled).weights
        for compiled in (True, False)
    ]
    assert all(torch.equal(results[0][name], results[1][name]) for name in base)


def test_the_order_of_the_tasks_changes_no_bit() -> None:
    base, finetuned = oracle.models(3)
    first = merge("average", base, finetuned, dare=Dare(0.5)).weights
    second = merge("average", base, dict(reversed(finetuned.items())), dare=Dare(0.5)).weights
    assert all(torch.equal(first[name], second[name]) for name in base)


def test_a_broken_entry_is_refused_even_where_it_would_be_dropped() -> None:
    base, finetuned = oracle.models(2)
    dropped = int((~Dare(0.9).mask("task01:blocks.0.w", slice(0, 24))).nonzero()[0])
    finetuned["task01"]["blocks.0.w"].view(-1)[dropped] = float("nan")
    for method in ("average", "ties"):
        with pytest.raises(StaError, match=r"fine-tuned on 'task01'.*NaN or Inf.*'blocks.0.w'"):
            merge(method, base, finetuned, dare=Dare(0.9))


def test_models_that_do_not_match_are_refused_by_name() -> None:
    base, finetuned = oracle.models(2)
    del finetuned["task00"]["blocks.0.b"]
    with pytest.raises(StaError, match=r"'task00'.*missing 1 tensor: 'blocks.0.b'"):
        merge("average", base, finetuned, dare=Dare(0.5))


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.1, float("nan"), float("inf"), "0.5", None, True])
def test_rates_that_are_none_are_refused(rate: Any) -> None:
    with pytest.raises(StaError, match=r"drop rate must be a number in \[0, 1\)"):
        Dare(rate)


def test_peft_drops_and_rescales_alike() -> None:
    utils = pytest.importorskip("peft.utils.merge_utils")
    # The masks are drawn otherwise; with the density one they are gone, and what is done with the
    # entries is left to compare.
    taus = list(torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(0)))
    base = {"w": torch.zeros(40, 50)}
    finetuned = {f"{i}": {"w": tau} for i, tau in enumerate(taus)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = utils.dare_linear(taus[:1], torch.ones(1), 0.25)
    ours = task_arithmetic(base, {"0": finetuned["0"]}, scale=1.0)["w"]
    dropped = merge("task_arithmetic", base, {"0": finetuned["0"]}, scale=1.0, dare=Dare(0.75)).weights["w"]
    for result in (theirs, dropped):
        kept = result != 0
        torch.testing.assert_close(result[kept], 4 * ours[kept])
        assert 0.2 < float(kept.double().mean()) < 0.3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        masks = [utils.random_pruning(torch.ones(40, 50), 0.25, rescale=True) for _ in taus]
        torch.manual_seed(0)
        theirs = utils.dare_ties(taus, torch.ones(3), 0.25)
    already = {f"{i}": {"w": tau * mask} for i, (tau, mask) in enumerate(zip(taus, masks, strict=True))}
    torch.testing.assert_close(ties(base, already, keep=1.0, scale=1.0)["w"], theirs)
