"""The loops for any number of tasks, against NumPy and against the eager forms."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from torch import Tensor

from sta_lightning.arithmetic.baselines.pcb import Pcb
from sta_lightning.arithmetic.forgetting import StaForgetting
from sta_lightning.arithmetic.linear import Average, Negation, TaskArithmetic
from sta_lightning.arithmetic.memory import run_in_memory
from sta_lightning.arithmetic.method import MergeMethod
from sta_lightning.arithmetic.selection import kth_by_digits, rank
from sta_lightning.kernels import Loops, loops
from sta_lightning.kernels.build import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")
Values = NDArray[np.float32]
SIZES = [0, 1, 7, 511, 512, 513, 1025, 5000]
finite = st.floats(-(2.0**100), 2.0**100, width=32)


@pytest.fixture
def native() -> Loops:
    found = loops()
    assert found is not None
    return found


def at(values: NDArray[Any]) -> int:
    return int(values.ctypes.data)


def random(size: int, seed: int) -> Values:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def test_read_fills_memory_from_every_file_or_says_that_one_is_too_short(
    native: Loops, tmp_path: Path
) -> None:
    rows, paths = np.stack([random(100, seed) for seed in range(3)]), []
    for number, row in enumerate(rows):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(b"head" * number + row.tobytes())
    out = np.zeros((3, 60), np.float32)
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")).fileno() for path in paths]
        reads = [(file, 4 * n + 4 * 40, at(out[n])) for n, file in enumerate(files)]
        assert native.read(reads, 4 * 60)
        assert np.array_equal(out, rows[:, 40:])
        assert not native.read([reads[0], (files[1], 4 + 4 * 41, at(out[1]))], 4 * 60)
        os.truncate(paths[2], 300)
        assert not native.read(reads, 4 * 60)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tasks", [1, 2, 6, 40])
def test_linear_is_base_plus_the_scaled_sum(native: Loops, size: int, tasks: int) -> None:
    base, out = random(size, 0), np.zeros(size, np.float32)
    finetuned = [random(size, 1 + t) for t in range(tasks)]
    assert native.linear(at(base), at(base), [at(t) for t in finetuned], 0.3, at(out), size)
    total = np.zeros(size, np.float32)
    for values in finetuned:
        total += values - base
    assert np.array_equal(out, base + np.float32(0.3) * total)
    wide = base.astype(np.float64) + 0.3 * sum(values.astype(np.float64) - base for values in finetuned)
    np.testing.assert_allclose(out, wide, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_negate_and_subtract(native: Loops, size: int) -> None:
    model, origin, finetuned, score = (random(size, seed) for seed in range(4))
    out = np.zeros(size, np.float32)
    assert native.negate(at(model), at(origin), at(finetuned), 0.7, at(out), size)
    assert np.array_equal(out, model - np.float32(0.7) * (finetuned - origin))
    mask = score > np.float32(0.1)
    assert native.subtract(at(model), at(origin), at(finetuned), at(score), 0.1, at(out), size) == (
        True,
        mask.sum(),
    )
    assert np.array_equal(out, model - np.where(mask, finetuned - origin, np.float32(0)))


@given(values=arrays.arrays(np.float32, st.integers(1, 40), elements=finite))
def test_bounds_is_minimum_and_maximum(values: Values) -> None:
    found = loops()
    assert found is not None
    assert found.bounds(at(values), len(values)) == (values.min(), values.max())


def test_bounds_of_nothing_is_empty(native: Loops) -> None:
    assert native.bounds(at(random(1, 0)), 0) == (np.inf, -np.inf)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 511, 512, 599])
def test_what_is_not_finite_is_found_by_every_loop(native: Loops, bad: float, place: int) -> None:
    clean, out, size = random(600, 1), np.zeros(600, np.float32), 600
    dirty = random(600, 2)
    dirty[place] = bad
    good, odd, to = at(clean), at(dirty), at(out)
    assert np.isnan(native.bounds(odd, size)).all()
    for base, finetuned in ((odd, good), (good, odd)):
        assert not native.linear(base, base, [good, finetuned], 1.0, to, size)
    assert not native.linear(good, odd, [good, good], 1.0, to, size)
    for model, origin, finetuned in ((odd, good, good), (good, odd, good), (good, good, odd)):
        assert not native.negate(model, origin, finetuned, 1.0, to, size)
        assert not native.subtract(model, origin, finetuned, good, 9.0, to, size)[0]
    assert not native.subtract(good, good, good, odd, 9.0, to, size)[0]
    for task in (good, odd):
        assert native.linear(good, good, [good] * 3, 1.0, to, place)
        assert not np.isnan(native.bounds(task, place)).any()


@settings(max_examples=60, deadline=None)
@given(values=arrays.arrays(np.float32, st.integers(1, 60), elements=finite), data=st.data())
@example(values=np.array([0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0], np.float32), data=None)
def test_counted_digits_give_the_order_statistic(values: Values, data: st.DataObject | None) -> None:
    found = loops()
    assert found is not None
    bits = values.view(np.int32)
    keys = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int64)
    high = np.zeros(1 << 16, np.int64)
    found.count(at(values), len(values), 16, 0, high.ctypes.data)
    assert np.array_equal(high, np.bincount((keys >> 16) + 32768, minlength=1 << 16))
    prefix = int(keys[0] >> 16)
    low = np.zeros(1 << 16, np.int64)
    found.count(at(values), len(values), 0, prefix, low.ctypes.data)
    assert np.array_equal(low, np.bincount(keys[keys >> 16 == prefix] & 0xFFFF, minlength=1 << 16))


@settings(max_examples=40, deadline=None)
@given(values=arrays.arrays(np.float32, st.integers(1, 60), elements=finite), p=st.floats(0, 1))
def test_forgetting_finds_the_threshold_of_the_eager_form(values: Values, p: float) -> None:
    base, finetuned = {"w": torch.zeros(len(values))}, {"t": {"w": torch.ones(len(values))}}
    scores = {"t": {"w": torch.from_numpy(values)}}
    got = run_in_memory(StaForgetting(p), base, finetuned, scores, compiled=True).weights["w"]
    assert torch.equal(
        got, run_in_memory(StaForgetting(p), base, finetuned, scores, compiled=False).weights["w"]
    )
    ordered = np.sort(values)
    assert np.array_equal(got.numpy() == -1, values > ordered[rank(len(values), p) - 1])


def test_a_tensor_of_many_pieces_has_one_threshold() -> None:
    size = 300_001  # three pieces
    scores = torch.rand(size, generator=torch.Generator().manual_seed(0))
    models = {"w": torch.zeros(size)}, {"t": {"w": torch.ones(size)}}, {"t": {"w": scores}}
    for compiled in (True, False):
        got = run_in_memory(StaForgetting(0.7), *models, compiled=compiled)
        threshold = scores.sort().values[rank(size, 0.7) - 1]
        assert torch.equal(got.weights["w"] == -1, scores > threshold)
        assert kth_by_digits(scores, rank(size, 0.7)) == threshold


@pytest.mark.parametrize("size", [1, 31, 32, 100, 513])
@pytest.mark.parametrize("steps", [0, 2])
def test_what_lies_between_two_numbers(native: Loops, size: int, steps: int) -> None:
    values = np.random.default_rng(size).standard_normal(size)
    values = np.round(values * steps) / steps if steps else values
    for low, high in ((-0.5, 0.5), (0.0, 0.0), (-np.inf, 1.0), (0.25, np.inf)):
        out = np.zeros(size)
        kept, counts = native.between(at(values), size, low, high, at(out))
        assert np.array_equal(out[:kept], values[(values > low) & (values < high)])
        assert counts == [(values < low).sum(), (values == low).sum(), (values == high).sum(), 0]
    values[-1] = np.nan
    assert native.between(at(values), size, 0.0, 0.0, at(np.zeros(size)))[1][3] == 1


@pytest.mark.parametrize("tasks", [2, 70])
def test_many_tasks_compete_as_in_the_eager_form(tasks: int) -> None:
    drawn = torch.Generator().manual_seed(tasks)
    base = {"w": torch.randn(1500, generator=drawn)}
    finetuned = {f"{task:02}": {"w": torch.randn(1500, generator=drawn)} for task in range(tasks)}
    eager = run_in_memory(Pcb(0.2), base, finetuned, compiled=False).weights["w"]
    native = run_in_memory(Pcb(0.2), base, finetuned, compiled=True).weights["w"]
    assert torch.equal(eager, native)
    assert not torch.equal(native, base["w"])


METHODS: list[MergeMethod] = [
    Average(),
    TaskArithmetic(0.4),
    TaskArithmetic(-1e-3),
    Negation(0.3),
    StaForgetting(0.6),
    Pcb(0.3),
    Pcb(0.1, scale=-0.7, variant="general", clamp=0.0),
]


@settings(max_examples=80, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    size=st.sampled_from(SIZES[:-1]),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([1.0, 1e-42, 1e30]),
)
def test_every_method_gives_the_bits_of_its_eager_form(
    method: MergeMethod, size: int, seed: int, spread: float
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    one_task = isinstance(method, Negation | StaForgetting)

    def state() -> dict[str, Tensor]:
        return {
            "w": spread * torch.randn(size, generator=drawn),
            "b": spread * torch.randn(3, generator=drawn),
        }

    base, origin = state(), state()
    finetuned = {str(task): state() for task in range(1 if one_task else 5)}
    scores = {task: state() for task in finetuned} if method.needs_importance else None
    started = origin if one_task else None
    eager = run_in_memory(method, base, finetuned, scores, origin=started, compiled=False)
    native = run_in_memory(method, base, finetuned, scores, origin=started, compiled=True)
    for name in base:
        assert torch.equal(eager.weights[name].view(torch.int32), native.weights[name].view(torch.int32))
    assert eager.kept == native.kept
