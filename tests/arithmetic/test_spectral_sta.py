"""Spectral STA against NumPy and SciPy, and what always holds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from sta_lightning.arithmetic import average, merge
from sta_lightning.errors import StaError
from tests.arithmetic.by_name import by_name

spectral_sta, tsv_merge = by_name("spectral_sta", "grams"), by_name("tsv")

State = dict[str, torch.Tensor]


def models(
    tasks: int, shape: tuple[int, int], seed: int, rows: int = 40
) -> tuple[State, dict[str, State], dict[str, State], dict[str, np.ndarray]]:
    """Models with one linear layer "w", a bias and a buffer; their Gram matrices and inputs."""
    generator = np.random.default_rng(seed)
    base = {
        "w": torch.tensor(generator.normal(size=shape), dtype=torch.float32),
        "b": torch.tensor(generator.normal(size=shape[0]), dtype=torch.float32),
        "steps": torch.tensor(3),
    }
    finetuned, grams, inputs = {}, {}, {}
    for task in map("t{}".format, range(tasks)):
        finetuned[task] = {
            name: tensor + 0.1 * torch.tensor(generator.normal(size=tensor.shape), dtype=torch.float32)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in base.items()
        }
        inputs[task] = generator.normal(size=(rows, shape[1])) * generator.uniform(0.1, 3, shape[1])
        grams[task] = {"w": torch.tensor(inputs[task].T @ inputs[task] / rows, dtype=torch.float32)}
    return base, finetuned, grams, inputs


def oracle(base: State, finetuned: dict[str, State], grams: dict[str, State], shrink: float) -> np.ndarray:
    """In NumPy and SciPy, by matrix square roots and polar decompositions."""
    deltas = [(finetuned[t]["w"].double() - base["w"].double()).numpy() for t in sorted(finetuned)]
    found = [grams[t]["w"].double().numpy() for t in sorted(finetuned)]
    metric = sum(g * len(g) / np.trace(g) for g in found) / len(found)
    metric = metric + shrink * np.trace(metric) / len(metric) * np.eye(len(metric))
    root = np.real(scipy.linalg.sqrtm(metric))
    keep = min(deltas[0].shape) // len(deltas)
    left, right, values = [], [], []
    for delta in deltas:
        u, s, vt = np.linalg.svd(delta @ root)
        left.append(u[:, :keep])
        values.append(s[:keep])
        right.append(vt[:keep].T)
    u, _ = scipy.linalg.polar(np.hstack(left))
    v, _ = scipy.linalg.polar(np.hstack(right))
    return base["w"].double().numpy() + u @ np.diag(np.concatenate(values)) @ v.T @ np.linalg.inv(root)


@pytest.mark.parametrize(("tasks", "shape"), [(1, (6, 4)), (2, (9, 6)), (3, (6, 12)), (4, (8, 8))])
@pytest.mark.parametrize("shrink", [0.01, 0.1, 2.0])
def test_it_is_what_the_formula_says(tasks: int, shape: tuple[int, int], shrink: float) -> None:
    base, finetuned, grams, _ = models(tasks, shape, seed=tasks)
    got = spectral_sta(base, finetuned, grams, shrink=shrink)
    np.testing.assert_allclose(got["w"].double().numpy(), oracle(base, finetuned, grams, shrink), atol=1e-6)
    assert torch.equal(got["b"], average(base, finetuned)["b"])
    assert torch.equal(got["steps"], base["steps"])


def test_the_importance_of_a_component_is_how_much_it_changes_the_outputs() -> None:
    """In the metric of one task's inputs, s^2 is the mean squared change of the outputs."""
    base, finetuned, _, inputs = models(1, (5, 7), seed=0, rows=200)
    delta = (finetuned["t0"]["w"] - base["w"]).double().numpy()
    gram = inputs["t0"].T @ inputs["t0"] / 200
    root = np.real(scipy.linalg.sqrtm(gram))
    u, s, vt = np.linalg.svd(delta @ root, full_matrices=False)
    for index in range(5):
        component = s[index] * np.outer(u[:, index], vt[index]) @ np.linalg.inv(root)
        change = np.square(inputs["t0"] @ component.T).sum() / 200
        assert change == pytest.approx(s[index] ** 2)


@given(st.integers(0, 2**16), st.integers(1, 3))
def test_without_a_metric_it_is_tsv(seed: int, tasks: int) -> None:
    base, finetuned, grams, _ = models(tasks, (7, 6), seed)
    identity = {task: {"w": 3.0 * torch.eye(6)} for task in grams}
    got, wanted = spectral_sta(base, finetuned, identity), tsv_merge(base, finetuned)
    torch.testing.assert_close(got["w"], wanted["w"], atol=1e-6, rtol=0)


@given(st.integers(0, 2**16), st.floats(0.01, 100))
def test_units_of_the_inputs_and_the_order_of_tasks_change_nothing(seed: int, factor: float) -> None:
    base, finetuned, grams, _ = models(3, (6, 9), seed)
    got = spectral_sta(base, finetuned, grams)["w"]
    scaled = {
        task: {"w": gram["w"] * (factor if task == "t1" else 1.0)}
        for task, gram in reversed(list(grams.items()))
    }
    other = spectral_sta(base, dict(reversed(list(finetuned.items()))), scaled)["w"]
    torch.testing.assert_close(got, other, atol=2e-6, rtol=0)


def test_a_single_task_is_kept_whole() -> None:
    base, finetuned, grams, _ = models(1, (5, 5), seed=1)
    torch.testing.assert_close(
        spectral_sta(base, finetuned, grams)["w"], finetuned["t0"]["w"], atol=1e-6, rtol=0
    )


def test_dead_layers_and_dead_inputs() -> None:
    base, finetuned, grams, _ = models(2, (6, 6), seed=2)
    dead = {task: {"w": torch.zeros(6, 6)} for task in grams}
    torch.testing.assert_close(
        spectral_sta(base, finetuned, dead)["w"], tsv_merge(base, finetuned)["w"], atol=1e-6, rtol=0
    )
    for gram in grams.values():
        gram["w"][0] = gram["w"][:, 0] = 0
    assert bool(spectral_sta(base, finetuned, grams)["w"].isfinite().all())
    same = {task: dict(base) for task in finetuned}
    assert torch.equal(spectral_sta(base, same, grams)["w"], base["w"])


@pytest.mark.parametrize("shrink", [0.0, -1.0, float("inf"), float("nan"), "much", True])
def test_shrink_is_a_number_larger_than_zero(shrink: object) -> None:
    base, finetuned, grams, _ = models(2, (4, 4), seed=0)
    with pytest.raises(StaError, match=r"shrink must be a number in \(0, inf\)"):
        spectral_sta(base, finetuned, grams, shrink=shrink)  # type: ignore[arg-type]


def test_gram_matrices_that_do_not_fit_are_refused() -> None:
    base, finetuned, grams, _ = models(2, (4, 5), seed=0)
    with pytest.raises(
        StaError, match="Spectral STA needs the Gram matrices of every task; there are none for 't1'"
    ):
        spectral_sta(base, finetuned, {"t0": grams["t0"], "t1": {}})
    with pytest.raises(StaError, match=r"has the shape \[4, 4\]"):
        spectral_sta(base, finetuned, {task: {"w": torch.eye(4)} for task in finetuned})
    with pytest.raises(StaError, match="negative entry on its diagonal"):
        spectral_sta(base, finetuned, {task: {"w": -torch.eye(5)} for task in finetuned})
    with pytest.raises(StaError, match=r"Gram matrices.*sta score .*--measure=gram "):
        merge("spectral_sta", base, finetuned)


@pytest.mark.parametrize("shrink", [1e-3, 0.1])
def test_what_it_changes_in_the_outputs_is_bounded_by_the_task_vectors(shrink: float) -> None:
    """As weights it is not: inputs along one line make them larger where no input is."""
    base, finetuned, _, _ = models(6, (24, 24), seed=3)
    line = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grams = {task: {"w": torch.outer(line, line)} for task in finetuned}
    deltas = [model["w"].double() - base["w"].double() for model in finetuned.values()]
    metric = torch.outer(line, line) * 24 / line.square().sum() + shrink * torch.eye(24)
    root = torch.linalg.cholesky(metric)
    merged = spectral_sta(base, finetuned, grams, shrink=shrink)["w"].double() - base["w"].double()
    assert float((merged @ root).norm()) <= float(torch.stack([d @ root for d in deltas]).norm()) + 1e-5
    assert float(merged.norm()) > float(torch.stack(deltas).norm())


def test_a_shrink_below_the_gram_matrices_rounding_has_an_answer() -> None:
    base, finetuned, _, _ = models(2, (8, 8), seed=4)
    generator = np.random.default_rng(0)
    grams = {}
    for task in finetuned:
        rows = generator.normal(size=(3, 8)) * 10.0 ** generator.uniform(-3, 3, 8)
        grams[task] = {"w": torch.tensor(rows.T @ rows, dtype=torch.float32)}
    merged = spectral_sta(base, finetuned, grams, shrink=1e-12)["w"]
    assert bool(merged.isfinite().all())
