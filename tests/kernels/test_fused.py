"""Fusion in machine code: the bits of the eager form, the masks of the exact oracle."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta_lightning.arithmetic import NORMALIZATIONS, rank
from sta_lightning.arithmetic import states as states_module
from sta_lightning.arithmetic.fusion import Sta
from sta_lightning.arithmetic.memory import run_in_memory
from sta_lightning.arithmetic.states import Merged
from sta_lightning.errors import StaError
from sta_lightning.kernels import MOST_TASKS, fused, loops
from sta_lightning.kernels.build import compiler
from tests.kernels.draws import KINDS, importances
from tests.oracles import sta as oracle

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")

# (tasks, p): each compiles a loop of its own. Ranks 1, N, and some between.
SHAPES = [(2, 0.0), (2, 1.0), (3, 0.7), (4, 1.0), (5, 0.5), (6, 0.0), (6, 0.7)]
State = dict[str, Tensor]


def problem(
    kinds: list[str], sizes: list[int], seed: int
) -> tuple[State, dict[str, State], dict[str, State]]:
    """A model of tensors of these sizes, one task a kind."""
    generator = torch.Generator().manual_seed(seed)
    base = {f"0.w{i}": torch.randn(size, generator=generator) for i, size in enumerate(sizes)}
    finetuned: dict[str, State] = {}
    scores: dict[str, State] = {str(task): {} for task in range(len(kinds))}
    for task in scores:
        finetuned[task] = {n: v + 0.01 * torch.randn(v.shape, generator=generator) for n, v in base.items()}
    for position, (name, value) in enumerate(base.items()):
        drawn = importances(kinds, value.numel(), seed + position)
        for task, row in zip(scores, drawn, strict=True):
            scores[task][name] = row
    return base, finetuned, scores


def assert_same(first: Merged, second: Merged) -> None:
    assert first.weights.keys() == second.weights.keys()
    for name, value in first.weights.items():
        bits = value.view(torch.int32), second.weights[name].view(torch.int32)
        assert torch.equal(*bits), name
    assert first.kept == second.kept


def both(method: Sta, *models: dict, dtype: torch.dtype | None = None) -> Merged:  # type: ignore[type-arg]
    """What the compiled form gives, after it has been compared with the eager one."""
    eager = run_in_memory(method, *models, dtype=dtype, compiled=False)
    native = run_in_memory(method, *models, dtype=dtype, compiled=True)
    if dtype is None:
        assert_same(eager, native)
    return native


@pytest.mark.parametrize(("n", "p"), SHAPES)
def test_it_is_what_is_tested(n: int, p: float) -> None:
    assert fused(n, rank(n, p)) is not None
    assert loops() is not None
    assert fused(n, rank(n, p), work=0) is not None


@settings(max_examples=250, deadline=None)
@given(data=st.data(), shape=st.sampled_from(SHAPES), mode=st.sampled_from(NORMALIZATIONS))
def test_the_bits_of_the_eager_form(data: st.DataObject, shape: tuple[int, float], mode: str) -> None:
    n, p = shape
    mixed = st.lists(st.sampled_from(KINDS), min_size=n, max_size=n)
    kinds = data.draw(mixed | st.sampled_from(KINDS).map(lambda kind: [kind] * n))
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 2, 7, 255, 256, 257, 600]), min_size=1, max_size=2))
    models = problem(kinds, sizes, data.draw(st.integers(0, 10**6)))
    if data.draw(st.booleans()):
        models[2]["1"] = models[2]["0"]  # two tasks tie everywhere
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states_module, "_PIECE_ON_CPU", data.draw(st.sampled_from([1 << 17, 256, 100])))
        both(Sta(p, mode), *models)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["grid", "neighbours"])
def test_scores_that_differ_by_rounding_alone(kind: str, seed: int) -> None:
    # 40 000 positions at each of which all six scores, or some, are within a few units in the last
    # place.
    both(Sta(0.7), *problem([kind] * 6, [40_000], seed))


def test_many_tasks() -> None:
    both(Sta(0.7), *problem([KINDS[i % len(KINDS)] for i in range(20)], [3000], 1))
    both(Sta(0.7), *problem(["grid", "neighbours"] * 10, [3000], 2))


@pytest.mark.parametrize("step", [1, 255, 256, 257, 511, 513])
def test_pieces_and_blocks_do_not_show(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (step - 1, step, step + 1, 2 * step + 1):
        models = problem(list(KINDS[:6]), [size], step)
        monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 1 << 17)
        whole = both(Sta(0.7), *models)
        monkeypatch.setattr(states_module, "_PIECE_ON_CPU", step)
        assert_same(both(Sta(0.7), *models), whole)


ROWS = st.lists(
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 1e-30, 1e30, 1e-45, 1 + 2**-23]) | st.floats(0, 1e6, width=32),
    min_size=9,
    max_size=9,
)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    shape=st.sampled_from(
        [(2, Fraction(0)), (3, Fraction(7, 10)), (5, Fraction(1, 2)), (6, Fraction(7, 10))]
    ),
)
@example(data=None, shape=(6, Fraction(7, 10)))
def test_the_masks_are_the_oracle_s(data: st.DataObject | None, shape: tuple[int, Fraction]) -> None:
    n, p = shape
    rows = (
        [[float(i * e % 7) for e in range(9)] for i in range(n)]
        if data is None
        else [data.draw(ROWS) for _ in range(n)]
    )
    base = {"w": torch.zeros(9)}
    # Task i adds 2**i: the sum tells which tasks were kept.
    finetuned = {str(i): {"w": torch.full((9,), 2.0**i)} for i in range(n)}
    scores = {str(i): {"w": torch.tensor(row)} for i, row in enumerate(rows)}
    wanted = oracle.fuse(
        {"w": np.zeros(9)},
        {task: {"w": state["w"].double().numpy()} for task, state in finetuned.items()},
        {task: {"w": state["w"].double().numpy()} for task, state in scores.items()},
        p,
    )
    got = run_in_memory(Sta(float(p)), base, finetuned, scores, compiled=True)
    assert np.array_equal(got.weights["w"].double().numpy(), wanted["w"])
    kept = [int(wanted["w"][e]) >> i & 1 for i in range(n) for e in range(9)]
    assert sum(got.kept["w"].values()) * 9 == pytest.approx(sum(kept))


@settings(max_examples=12, deadline=None)
@given(
    data=st.data(), n=st.integers(MOST_TASKS + 1, 70), p=st.floats(0, 1), mode=st.sampled_from(NORMALIZATIONS)
)
def test_more_tasks_share_a_loop_of_the_same_bits(data: st.DataObject, n: int, p: float, mode: str) -> None:
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=n, max_size=n))
    models = problem(kinds, [data.draw(st.sampled_from([0, 1, 250, 600]))], data.draw(st.integers(0, 10**6)))
    models[2]["1"] = models[2]["0"]  # two tasks tie everywhere
    both(Sta(p, mode), *models)


def test_a_number_of_tasks_without_room_has_no_loop() -> None:
    assert fused(4096, 1) is not None
    assert fused(4097, 1) is None


@pytest.mark.parametrize("n", [MOST_TASKS + 1, 64, 100])
def test_more_tasks_than_have_a_loop_of_their_own(n: int) -> None:
    k = rank(n, 0.7)
    assert fused(n, k) is not None
    generator = torch.Generator().manual_seed(n)
    base = {"w": torch.zeros(50)}
    finetuned = {f"{i:03}": {"w": torch.randn(50, generator=generator)} for i in range(n)}
    scores = {task: {"w": torch.rand(50, generator=generator)} for task in finetuned}
    got = both(Sta(0.7, "none"), base, finetuned, scores)
    values = np.stack([state["w"].double().numpy() for state in scores.values()])
    deltas = np.stack([state["w"].double().numpy() for state in finetuned.values()])
    mask = values > np.sort(values, axis=0)[k - 1]
    np.testing.assert_allclose(got.weights["w"].numpy(), (mask * deltas).sum(axis=0), atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, -3])
def test_fewer_than_two_tasks_have_no_loop(n: int) -> None:
    assert fused(n, 1) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["base", "finetuned", "scores"])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("mode", ["tensor", "none"])
def test_what_is_not_finite_is_refused_by_name(where: str, bad: float, compiled: bool, mode: str) -> None:
    base, finetuned, scores = problem(["uniform"] * 3, [300, 700], 5)
    target = {"base": base, "finetuned": finetuned["1"], "scores": scores["1"]}[where]
    target["0.w1"][699] = bad
    title = {
        "base": "the pretrained model",
        "finetuned": "the model fine-tuned on '1'",
        "scores": "the importance of task '1'",
    }
    with pytest.raises(StaError, match=rf"{title[where]} holds NaN or Inf in tensor '0\.w1'"):
        run_in_memory(Sta(0.7, mode), base, finetuned, scores, compiled=compiled)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_task_vector_that_overflows_counts_only_where_it_is_kept(compiled: bool) -> None:
    base = {"w": torch.tensor([-3e38, 0.0, 1.0])}
    finetuned = {"a": {"w": torch.tensor([3e38, 1.0, 1.0])}, "b": {"w": torch.tensor([-3e38, 2.0, 1.0])}}
    dropped = {"a": {"w": torch.tensor([0.0, 1.0, 0.5])}, "b": {"w": torch.tensor([1.0, 0.0, 0.5])}}
    got = run_in_memory(Sta(), base, finetuned, dropped, compiled=compiled)
    assert got.weights["w"].tolist() == [torch.tensor(-3e38).item(), 1.0, 1.0]
    assert got.kept == {"w": {"a": pytest.approx(1 / 3), "b": pytest.approx(1 / 3)}}
    kept = {"a": dropped["b"], "b": dropped["a"]}
    with pytest.raises(StaError, match=r"overflows torch\.float32 in tensor 'w'"):
        run_in_memory(Sta(), base, finetuned, kept, compiled=compiled)


def test_scores_whose_sum_overflows_are_still_ranked() -> None:
    base = {"w": torch.zeros(300)}
    finetuned = {str(i): {"w": torch.full((300,), 2.0**i)} for i in range(3)}
    scores = {str(i): {"w": torch.full((300,), 3e38 - 1e37 * i)} for i in range(3)}
    assert both(Sta(0.7, "none"), base, finetuned, scores).weights["w"].tolist() == [1.0] * 300


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_types_of_sources_and_results(dtype: torch.dtype) -> None:
    base, finetuned, scores = problem(["uniform", "grid", "logarithmic"], [700], 9)
    base = {name: value.to(dtype) for name, value in base.items()}
    finetuned["1"] = {name: value.half() for name, value in finetuned["1"].items()}
    scores["2"] = {name: value.to(torch.bfloat16) for name, value in scores["2"].items()}
    for wanted in (torch.float16, torch.bfloat16, torch.float32):
        eager = run_in_memory(Sta(), base, finetuned, scores, dtype=wanted, compiled=False)
        native = run_in_memory(Sta(), base, finetuned, scores, dtype=wanted, compiled=True)
        assert native.weights["0.w0"].dtype == wanted
        assert torch.equal(eager.weights["0.w0"], native.weights["0.w0"])
        assert eager.kept == native.kept


def test_views_that_are_not_at_the_start_of_their_memory() -> None:
    base, finetuned, scores = problem(["uniform", "grid", "zero"], [601], 3)
    wanted = run_in_memory(Sta(), base, finetuned, scores, compiled=False)
    moved = [
        {name: torch.cat([torch.zeros(3), value])[3:] for name, value in state.items()}
        for state in (base, *finetuned.values(), *scores.values())
    ]
    got = run_in_memory(
        Sta(),
        moved[0],
        dict(zip(finetuned, moved[1:4], strict=True)),
        dict(zip(scores, moved[4:], strict=True)),
        compiled=True,
    )
    assert_same(got, wanted)
    spread = {name: torch.stack([value, value], dim=1)[:, 1] for name, value in base.items()}
    assert_same(run_in_memory(Sta(), spread, finetuned, scores, compiled=True), wanted)


def test_a_group_whose_float64_bounds_lie_too_far_apart() -> None:
    # Their difference overflows: the eager form halves them, and the loop leaves the tensor to it.
    base = {"0.a": torch.zeros(4), "0.b": torch.zeros(2, dtype=torch.float64)}
    finetuned = {str(i): {n: torch.full_like(v, 2.0**i) for n, v in base.items()} for i in range(3)}
    far = torch.tensor([-1.7e308, 1.7e308], dtype=torch.float64)
    near = torch.tensor([0.0, 4.0], dtype=torch.float64)
    scores = {str(i): {"0.a": torch.tensor([1.0, 0.0, 3.0, 2.5]).roll(i), "0.b": near} for i in range(3)}
    scores["0"]["0.b"] = far  # so that task 0 is normalised to 0.5 everywhere in 0.a
    got = both(Sta(0.5, "model"), base, finetuned, scores, dtype=torch.float32)
    eager = run_in_memory(Sta(0.5, "model"), base, finetuned, scores, dtype=torch.float32, compiled=False)
    assert_same(got, eager)
    # Task 1 has 2.5, 1, 0 and 3 quarters, task 2 has 3, 2.5, 1 and 0: the greatest of the three is
    # kept.
    assert got.weights["0.a"].tolist() == [4.0, 4.0, 1.0, 2.0]


def test_the_loop_itself_says_what_it_found() -> None:
    loop = fused(2, 1)
    assert loop is not None
    base, one, two, out = (
        np.zeros(5, np.float32),
        np.ones(5, np.float32),
        np.full(5, 2, np.float32),
        np.zeros(5, np.float32),
    )
    first = np.array([0, 1, 2, 3, 4], np.float32)
    second = first[::-1].copy()
    where = [array.ctypes.data for array in (base, one, two, first, second, out)]

    def call(size: int) -> tuple[bool, list[int]]:
        assert loop is not None
        return loop(where[0], where[1:3], where[3:5], [(0.0, 4.0)] * 2, where[5], size)

    assert call(5) == (True, [2, 2])
    assert out.tolist() == [2, 2, 0, 1, 1]
    assert call(0) == (True, [0, 0])
    second[4] = np.nan
    assert call(4)[0]
    assert not call(5)[0]
