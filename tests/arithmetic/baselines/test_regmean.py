"""RegMean: the oracle, what its definition implies, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta_lightning.arithmetic import Dare, average, merge
from sta_lightning.arithmetic.baselines.regmean import RegMean
from sta_lightning.arithmetic.quadratic import times_inverse
from sta_lightning.errors import StaError
from tests.arithmetic.by_name import by_name
from tests.oracles import spectral as oracle

regmean_merge = by_name("regmean", "grams")

State = dict[str, Tensor]
LAYERS = ["in_proj.weight", "c_fc.weight", "row.weight", "column.weight"]


def inputs(base: State, tasks: list[str], rows: int = 60, seed: int = 0) -> dict[str, State]:
    """Correlated inputs of different sizes ``[rows, in]`` of every linear layer, for every task."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    found = {}
    for task in tasks:
        found[task] = {
            name: (draw(rows, size) + 2 * draw(rows, 1)) * 10 ** draw(size).clamp(-2, 2)
            for name, size in ((name, base[name].shape[1]) for name in LAYERS)
        }
    return found


def grams(found: dict[str, State], dtype: torch.dtype = torch.float64) -> dict[str, State]:
    return {task: {n: (x.mT @ x).to(dtype) for n, x in layers.items()} for task, layers in found.items()}


def check(
    got: State,
    base: State,
    finetuned: dict[str, State],
    found: dict[str, State],
    ratio: float,
    atol: float = 1e-6,
) -> None:
    """Against least squares over the inputs for the layers, and against the mean for the rest."""
    wanted = oracle.floats(average(base, finetuned, dtype=torch.float64))
    for name in LAYERS:
        weights = [finetuned[task][name].double().numpy() for task in sorted(finetuned)]
        wanted[name] = oracle.regmean(
            weights, [found[task][name].numpy() for task in sorted(finetuned)], ratio
        )
    oracle.close(got, wanted, atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ratio", [1.0, 0.95, 0.5, 0.0])
@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_regmean_is_the_oracle(tasks: int, ratio: float, dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(tasks, seed=tasks, dtype=dtype)
    found = inputs(base, sorted(finetuned), seed=tasks)
    wide = None if dtype == torch.float64 else torch.float32
    got = regmean_merge(base, finetuned, grams(found), ratio=ratio, dtype=wide)
    check(got, base, finetuned, found, ratio)
    assert list(got) == list(base)
    assert torch.equal(got["steps"], base["steps"])


def test_gram_matrices_in_float32_do() -> None:
    base, finetuned = oracle.models(3)
    found = inputs(base, sorted(finetuned))
    check(regmean_merge(base, finetuned, grams(found, torch.float32)), base, finetuned, found, 0.95)


@pytest.mark.parametrize("ratio", [1.0, 0.95])
@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_rows_than_inputs_leave_the_rest_at_the_mean(rows: int, ratio: float) -> None:
    base, finetuned = oracle.models(2, dtype=torch.float64)
    found = inputs(base, sorted(finetuned), rows=rows)
    got = regmean_merge(base, finetuned, grams(found), ratio=ratio)
    mean = average(base, finetuned)
    for name in LAYERS:
        # Least squares over the inputs, each scaled to one length, for what is added to the mean:
        # the least such.
        both = torch.cat([found[task][name] for task in sorted(finetuned)])
        lengths = both.norm(dim=0)
        scaled = {task: (found[task][name] / lengths).numpy() for task in finetuned}
        weights = [((finetuned[task][name] - mean[name]) * lengths).numpy() for task in sorted(finetuned)]
        wanted = oracle.regmean(weights, [scaled[task] for task in sorted(finetuned)], ratio)
        moved = (got[name] - mean[name]) * lengths
        np.testing.assert_allclose(moved.numpy(), wanted, atol=1e-6 * float(lengths.max()), err_msg=name)


@pytest.mark.parametrize("ratio", [1.0, 0.95])
def test_dead_inputs_leave_the_mean(ratio: float) -> None:
    base, finetuned = oracle.models(3, dtype=torch.float64)
    found = inputs(base, sorted(finetuned))
    for layers in found.values():
        layers["c_fc.weight"][:, 3] = 0
        layers["in_proj.weight"][:] = 0
    mean = average(base, finetuned)
    got = regmean_merge(base, finetuned, grams(found), ratio=ratio)
    torch.testing.assert_close(got["c_fc.weight"][:, 3], mean["c_fc.weight"][:, 3], rtol=0, atol=1e-14)
    torch.testing.assert_close(got["in_proj.weight"], mean["in_proj.weight"], rtol=0, atol=1e-14)
    alive = [i for i in range(14) if i != 3]
    weights = [finetuned[task]["c_fc.weight"][:, alive].numpy() for task in sorted(finetuned)]
    seen = [found[task]["c_fc.weight"][:, alive].numpy() for task in sorted(finetuned)]
    wanted = oracle.regmean(weights, seen, ratio)
    np.testing.assert_allclose(got["c_fc.weight"][:, alive].numpy(), wanted, atol=1e-6)


def test_repeated_inputs_share_the_change() -> None:
    base = {"w": torch.zeros(1, 2, dtype=torch.float64)}
    finetuned = {"a": {"w": torch.tensor([[1.0, 0.0]])}, "b": {"w": torch.tensor([[0.0, 3.0]])}}
    both = torch.ones(2, 2, dtype=torch.float64)
    # Only the sum of the two weights is seen: 1 and 3, each as often; the mean of the models has it
    # already.
    got = regmean_merge(base, finetuned, {"a": {"w": both}, "b": {"w": both}}, ratio=1.0)
    assert got["w"].tolist() == [[0.5, 1.5]]
    got = regmean_merge(base, finetuned, {"a": {"w": 3 * both}, "b": {"w": both}}, ratio=1.0)
    np.testing.assert_allclose(got["w"].numpy(), [[0.25, 1.25]], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(1, 5), ratio=st.floats(0, 1))
def test_identical_tasks_and_identical_inputs(seed: int, tasks: int, ratio: float) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    seen = grams(inputs(base, sorted(finetuned), seed=seed))
    got = regmean_merge(base, finetuned, dict.fromkeys(finetuned, seen["task1"]), ratio=ratio)
    oracle.close(got, oracle.floats(average(base, finetuned)), atol=1e-10)
    got = regmean_merge(base, dict.fromkeys(finetuned, finetuned["task1"]), seen, ratio=ratio)
    oracle.close(got, oracle.floats(finetuned["task1"]), atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10_000), tasks=st.integers(2, 5), factor=st.floats(1e-6, 1e6))
def test_order_and_unit_are_rounding(data: st.DataObject, seed: int, tasks: int, factor: float) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    seen = grams(inputs(base, sorted(finetuned), seed=seed))
    wanted = oracle.floats(regmean_merge(base, finetuned, seen))
    names = dict(zip(sorted(finetuned), data.draw(st.permutations(sorted(finetuned))), strict=True))
    scaled = {new: {n: factor * gram for n, gram in seen[old].items()} for new, old in names.items()}
    got = regmean_merge(base, {new: finetuned[old] for new, old in names.items()}, scaled)
    oracle.close(got, wanted, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(2, 4))
def test_the_outputs_are_nearer_than_the_average_s(seed: int, tasks: int) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    found = inputs(base, sorted(finetuned), seed=seed)
    merged, mean = regmean_merge(base, finetuned, grams(found), ratio=1.0), average(base, finetuned)

    def error(model: State, name: str) -> float:
        return sum(
            float((found[t][name] @ (model[name] - finetuned[t][name]).mT).square().sum())
            for t in sorted(finetuned)
        )

    assert all(error(merged, name) <= error(mean, name) * (1 + 1e-9) for name in LAYERS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(3, dtype=dtype)
    seen = grams(inputs(base, sorted(finetuned)))
    wide, got = (
        regmean_merge(base, finetuned, seen, dtype=torch.float32),
        regmean_merge(base, finetuned, seen),
    )
    assert all(torch.equal(got[name], wide[name].to(dtype)) for name in base if name != "steps")


def test_a_matrix_without_entries_has_an_inverse() -> None:
    nothing = times_inverse(
        torch.zeros(3, 0, dtype=torch.float64), torch.zeros(0, 0, dtype=torch.float64), 0.0
    )
    assert nothing.shape == (3, 0)


def test_it_has_its_name_and_goes_behind_dare() -> None:
    base, finetuned = oracle.models(2)
    seen = grams(inputs(base, sorted(finetuned)))
    got = merge("regmean", base, finetuned, grams=seen, settings={"ratio": 0.5}).weights
    wanted = regmean_merge(base, finetuned, seen, ratio=0.5)
    assert all(torch.equal(got[name], value) for name, value in wanted.items())
    thin = merge("regmean", base, finetuned, grams=seen, dare=Dare(0.5)).weights
    assert all(bool(value.isfinite().all()) for value in thin.values())


def test_gram_matrices_that_do_not_fit_are_refused_by_name() -> None:
    base, finetuned = oracle.models(2)

    def refused(message: str, task: str = "task2", without: str | None = None, **changed: Tensor) -> None:
        seen = grams(inputs(base, sorted(finetuned)))
        seen[task].update({name.replace("__", "."): gram for name, gram in changed.items()})
        if without is not None:
            del seen[task][without]
        with pytest.raises(StaError, match=message):
            regmean_merge(base, finetuned, seen)

    with pytest.raises(StaError, match=r"Gram matrices of the layers' inputs, and none were given"):
        merge("regmean", base, finetuned)
    with pytest.raises(StaError, match=r"there are none for 'task2'"):
        regmean_merge(base, finetuned, {"task1": grams(inputs(base, ["task1"]))["task1"]})
    refused(
        r"task 'task2' for tensor 'c_fc.weight', \[9, 14\].*\[9, 9\].*\[14, 14\]", c_fc__weight=torch.eye(9)
    )
    refused(r"task 'task2' has no Gram matrix for 'row.weight'", without="row.weight")
    refused(r"task 'task1' has no Gram matrix for 'ln.bias'", ln__bias=torch.eye(7))
    refused(
        r"task 'task2' are those of another model: it has no weights 'fc.weight'", fc__weight=torch.eye(7)
    )
    refused(r"'row.weight' has a negative entry on its diagonal", row__weight=-torch.eye(7))
    refused(r"Gram matrix of tensor 'row.weight' holds NaN or Inf", row__weight=torch.full((7, 7), torch.inf))
    seen = grams(inputs(base, sorted(finetuned)))
    for found in seen.values():
        found["ln.bias"] = torch.eye(7)
    with pytest.raises(StaError, match=r"tensor 'ln.bias', \[7\].*has two dimensions"):
        regmean_merge(base, finetuned, seen)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), "1", True])
def test_a_ratio_out_of_range_is_refused(ratio: object) -> None:
    with pytest.raises(StaError, match=r"ratio.*\[0, 1\], and is"):
        RegMean(ratio)  # type: ignore[arg-type]
