"""Iso-C and Iso-CTS: the oracle, what their definitions imply, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sta_lightning.arithmetic import average, merge, task_arithmetic
from sta_lightning.arithmetic.baselines.iso import IsoC, IsoCts, shares
from sta_lightning.errors import StaError
from tests.arithmetic.by_name import by_name
from tests.oracles import spectral as oracle

iso_c_merge, iso_cts_merge = by_name("iso_c"), by_name("iso_cts")

MATRICES = ["in_proj.weight", "c_fc.weight", "out_proj.weight"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_iso_c_is_the_oracle(tasks: int, dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(tasks, seed=tasks, dtype=dtype)
    got = iso_c_merge(base, finetuned, scale=0.7, dtype=None if dtype == torch.float64 else torch.float32)
    models = [oracle.floats(finetuned[task]) for task in sorted(finetuned)]
    oracle.close(got, oracle.merged(oracle.floats(base), models, oracle.iso_c, 0.7))
    assert list(got) == list(base)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("common", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_iso_cts_is_the_oracle(tasks: int, common: float, dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(tasks, seed=tasks, dtype=dtype)
    wide = None if dtype == torch.float64 else torch.float32
    got = iso_cts_merge(base, finetuned, common=common, scale=0.7, dtype=wide)
    models = [oracle.floats(finetuned[task]) for task in sorted(finetuned)]
    wanted = oracle.merged(oracle.floats(base), models, lambda deltas: oracle.iso_cts(deltas, common), 0.7)
    oracle.close(got, wanted)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(1, 5), common=st.floats(0.3, 1))
def test_all_singular_values_are_equal(seed: int, tasks: int, common: float) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    deltas = {name: sum(model[name] - base[name] for model in finetuned.values()) for name in MATRICES}
    for merged in (iso_c_merge(base, finetuned), iso_cts_merge(base, finetuned, common=common)):
        for name in MATRICES:
            values = np.linalg.svd((merged[name] - base[name]).numpy(), compute_uv=False)
            np.testing.assert_allclose(values, values[0], rtol=1e-8)
    values = np.linalg.svd((iso_c_merge(base, finetuned)["c_fc.weight"] - base["c_fc.weight"]).numpy())[1]
    spectrum = np.linalg.svd(deltas["c_fc.weight"].numpy())[1]
    assert values[0] == pytest.approx(spectrum.mean())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(1, 5), common=st.floats(0, 1))
def test_one_task_and_all_common_are_iso_c(seed: int, tasks: int, common: float) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    oracle.close(
        iso_cts_merge(base, finetuned, common=1.0), oracle.floats(iso_c_merge(base, finetuned)), atol=1e-8
    )
    one = {"task1": finetuned["task1"]}
    oracle.close(iso_cts_merge(base, one, common=common), oracle.floats(iso_c_merge(base, one)), atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10_000), tasks=st.integers(2, 5))
def test_the_tasks_order_is_rounding(data: st.DataObject, seed: int, tasks: int) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    names = data.draw(st.permutations(sorted(finetuned)))
    renamed = {new: finetuned[old] for new, old in zip(sorted(finetuned), names, strict=True)}
    for method in (iso_c_merge, iso_cts_merge):
        oracle.close(method(base, renamed), oracle.floats(method(base, finetuned)), atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(1, 4), factor=st.floats(0.1, 3))
def test_scaled_task_vectors_and_a_scale_are_the_same(seed: int, tasks: int, factor: float) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    zeros = {name: torch.zeros_like(value) for name, value in base.items()}
    vectors = {t: {name: m[name] - base[name] for name in base} for t, m in finetuned.items()}
    scaled = {
        t: {n: factor * v if v.is_floating_point() else v for n, v in m.items()} for t, m in vectors.items()
    }
    for method in (iso_c_merge, iso_cts_merge):
        wanted = method(zeros, vectors, scale=factor)
        oracle.close(method(zeros, scaled), oracle.floats(wanted), atol=1e-8)


@settings(max_examples=100, deadline=None)
@given(rank=st.integers(1, 4096), tasks=st.integers(1, 30), common=st.floats(0, 1))
def test_shares_add_up(rank: int, tasks: int, common: float) -> None:
    shared, specific = shares(rank, tasks, common)
    assert shared + tasks * specific == rank
    assert shared >= 0
    assert specific >= 0
    assert abs(shared - rank * common) <= tasks


def test_shares_of_a_vision_transformer() -> None:
    assert shares(768, 8, 0.8) == (616, 19)
    assert shares(768, 14, 0.8) == (614, 11)
    assert shares(768, 20, 0.8) == (608, 8)
    assert shares(3, 4, 0.0) == (3, 0)  # one direction a task would be more than there are


@pytest.mark.parametrize("method", [iso_c_merge, iso_cts_merge])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zero_vectors_change_nothing(method, dtype: torch.dtype) -> None:
    base, _ = oracle.models(1, dtype=dtype)
    got = method(base, {"a": base, "b": base})
    assert all(torch.equal(got[name], base[name]) for name in base)


@pytest.mark.parametrize("method", [iso_c_merge, iso_cts_merge])
def test_directions_that_no_task_has_stay_zero(method) -> None:
    base, finetuned = oracle.models(3, dtype=torch.float64)
    for model in finetuned.values():
        model["c_fc.weight"][:, 5] = base["c_fc.weight"][:, 5]
        model["out_proj.weight"][2:] = base["out_proj.weight"][2:]
    got = method(base, finetuned)
    torch.testing.assert_close(got["c_fc.weight"][:, 5], base["c_fc.weight"][:, 5], rtol=0, atol=1e-12)
    torch.testing.assert_close(got["out_proj.weight"][2:], base["out_proj.weight"][2:], rtol=0, atol=1e-12)
    assert bool((got["out_proj.weight"][:2] != base["out_proj.weight"][:2]).any())


def test_iso_c_of_a_matrix_of_lower_rank() -> None:
    column, row = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([2.0, 0.0, 0.0, 0.0])
    base = {"w": torch.zeros(3, 4)}
    got = iso_c_merge(base, {"t": {"w": torch.outer(column, row)}})["w"]
    # One singular value, 10, of three: their mean is 10/3, in the one direction that there is.
    torch.testing.assert_close(got, torch.outer(column, row) / 3)


def test_opposite_tasks_cancel() -> None:
    base = {"w": torch.zeros(4, 5)}
    delta = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    finetuned = {"a": {"w": delta}, "b": {"w": -delta}}
    assert not iso_c_merge(base, finetuned)["w"].any()
    assert bool(iso_cts_merge(base, finetuned)["w"].isfinite().all())


def test_other_tensors_are_averaged_and_vectors_are_matrices_of_rank_one() -> None:
    base, finetuned = oracle.models(3)
    mean, total = average(base, finetuned), task_arithmetic(base, finetuned, scale=1.0)
    for method in (iso_c_merge, iso_cts_merge):
        got = method(base, finetuned)
        for name in ("conv1.weight", "text_projection", "ln.bias", "scale"):
            assert torch.equal(got[name], mean[name])
        for name in ("row.weight", "column.weight"):
            torch.testing.assert_close(got[name], total[name], rtol=0, atol=1e-6)


def test_they_have_their_names() -> None:
    base, finetuned = oracle.models(2)
    got = merge("iso_c", base, finetuned, scale=0.5).weights
    assert all(
        torch.equal(got[name], value) for name, value in iso_c_merge(base, finetuned, scale=0.5).items()
    )
    got = merge("iso_cts", base, finetuned, scale=0.5, settings={"common": 0.5}).weights
    wanted = iso_cts_merge(base, finetuned, common=0.5, scale=0.5)
    assert all(torch.equal(got[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("common", [-0.1, 1.1, float("nan"), "0.8", True])
def test_what_is_out_of_range_is_refused(common: object) -> None:
    with pytest.raises(StaError, match=r"common, the share.*\[0, 1\], and is"):
        IsoCts(common)  # type: ignore[arg-type]
    for method in (IsoC, IsoCts):
        with pytest.raises(StaError, match="scale must be a finite number"):
            method(scale=float("nan"))


@pytest.mark.parametrize("method", [iso_c_merge, iso_cts_merge, by_name("tsv")])
def test_the_rounding_of_low_rank_changes_to_float32_has_no_directions(method) -> None:
    """Merged adapters: of rank three before they were rounded, of full rank after that."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base = {"w": draw(48, 32).float()}
    exact = {t: {"w": base["w"].double() + 1e-3 * draw(48, 3) @ draw(3, 32)} for t in "ab"}
    finetuned = {t: {"w": model["w"].float()} for t, model in exact.items()}
    got = (method(base, finetuned, dtype=torch.float64)["w"] - base["w"].double()).numpy()
    wanted = (method({"w": base["w"].double()}, exact)["w"] - base["w"].double()).numpy()
    np.testing.assert_allclose(got, wanted, atol=2e-3 * np.abs(wanted).max())
    # Of full rank by the rounding alone:
    spectrum = np.linalg.svd((finetuned["a"]["w"] - base["w"]).double().numpy(), compute_uv=False)
    assert spectrum[31] > 1e-9 * spectrum[0]
