"""TSV-M: the oracle, what its definition implies, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sta_lightning.arithmetic import Dare, average, merge, spectral
from sta_lightning.arithmetic.baselines.tsv import Tsv
from sta_lightning.arithmetic.spectral import orthogonalised, triples
from sta_lightning.errors import StaError
from tests.arithmetic.by_name import by_name
from tests.oracles import spectral as oracle

tsv_merge = by_name("tsv")

MATRICES = ["in_proj.weight", "c_fc.weight", "out_proj.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 9])
def test_tsv_is_the_oracle(tasks: int, dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(tasks, seed=tasks, dtype=dtype)
    got = tsv_merge(base, finetuned, scale=0.7, dtype=None if dtype == torch.float64 else torch.float32)
    wanted = oracle.merged(
        oracle.floats(base), [oracle.floats(finetuned[task]) for task in sorted(finetuned)], oracle.tsv, 0.7
    )
    oracle.close(got, wanted)
    assert list(got) == list(base)
    assert torch.equal(got["steps"], base["steps"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(3, dtype=dtype)
    wide = tsv_merge(base, finetuned, dtype=torch.float32)
    got = tsv_merge(base, finetuned)
    assert all(torch.equal(got[name], wide[name].to(dtype)) for name in base if name != "steps")
    assert got["c_fc.weight"].dtype == dtype


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(2, 5))
def test_identical_tasks_are_their_common_triples(seed: int, tasks: int) -> None:
    base, finetuned = oracle.models(1, seed=seed, dtype=torch.float64)
    got = tsv_merge(base, {f"t{i}": finetuned["task1"] for i in range(tasks)})
    for name in MATRICES:
        u, s, vh = np.linalg.svd((finetuned["task1"][name] - base[name]).numpy(), full_matrices=False)
        k = len(s) // tasks
        wanted = (u[:, :k] * s[:k]) @ vh[:k]
        np.testing.assert_allclose((got[name] - base[name]).numpy(), wanted, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), tasks=st.integers(1, 4), factor=st.floats(-3, 3))
def test_scaled_task_vectors_and_a_scale_are_the_same(seed: int, tasks: int, factor: float) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    zeros = {name: torch.zeros_like(value) for name, value in base.items()}
    vectors = {t: {name: m[name] - base[name] for name in base} for t, m in finetuned.items()}
    scaled = {
        t: {n: factor * v if v.is_floating_point() else v for n, v in m.items()} for t, m in vectors.items()
    }
    got = tsv_merge(zeros, scaled)
    wanted = tsv_merge(zeros, vectors, scale=factor)
    oracle.close(got, oracle.floats(wanted), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10_000), tasks=st.integers(2, 5))
def test_the_tasks_order_is_rounding(data: st.DataObject, seed: int, tasks: int) -> None:
    base, finetuned = oracle.models(tasks, seed=seed, dtype=torch.float64)
    names = data.draw(st.permutations(sorted(finetuned)))
    renamed = {new: finetuned[old] for new, old in zip(sorted(finetuned), names, strict=True)}
    oracle.close(tsv_merge(base, renamed), oracle.floats(tsv_merge(base, finetuned)), atol=1e-9)
    again = tsv_merge(base, dict(reversed(finetuned.items())))
    assert all(torch.equal(again[name], value) for name, value in tsv_merge(base, finetuned).items())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), m=st.integers(1, 12), k=st.integers(1, 12))
def test_factors_are_orthogonal(seed: int, m: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(m, k, generator=generator, dtype=torch.float64)
    vectors /= vectors.norm(dim=0)
    factor = orthogonalised(vectors)
    inner = factor.mT @ factor if k <= m else factor @ factor.mT
    torch.testing.assert_close(inner, torch.eye(min(m, k), dtype=torch.float64), rtol=0, atol=1e-9)
    # The nearest one: its product with the vectors is symmetric and positive.
    product = factor.mT @ vectors
    torch.testing.assert_close(product, product.mT, rtol=0, atol=1e-9)
    assert float(torch.linalg.eigvalsh(product).min()) > -1e-9


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (64, 64)])
@pytest.mark.parametrize("method", ["tsv", "iso_c", "iso_cts", "dc_merge"])
def test_gram_matrices_give_what_decompositions_give(
    method: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Task vectors with a spectrum that falls off as those of fine-tunings do."""
    generator = torch.Generator().manual_seed(0)

    def delta() -> torch.Tensor:
        u, v = (torch.linalg.qr(torch.randn(n, 64, generator=generator).double()).Q for n in shape)
        return 0.02 * (u * torch.arange(1.0, 65.0) ** -0.7) @ v.mT

    base = {"w": torch.randn(shape, generator=generator).double()}
    finetuned = {f"t{i}": {"w": base["w"] + delta()} for i in range(5)}
    with monkeypatch.context() as patch:
        patch.setattr(spectral, "_DIGITS", math.inf)
        wanted = merge(method, base, finetuned).weights["w"] - base["w"]
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **settings: pytest.fail("decomposed"))
    got = merge(method, base, finetuned).weights["w"] - base["w"]
    assert float((got - wanted).norm() / wanted.norm()) < 1e-9


def test_dependent_vectors_give_a_partial_isometry() -> None:
    one = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    factor = orthogonalised(torch.cat([one, one, torch.zeros(3, 1, dtype=torch.float64), -one], dim=1))
    root = 3**-0.5
    torch.testing.assert_close(factor[0], torch.tensor([root, root, 0.0, -root], dtype=torch.float64))
    assert not factor[1:].any()


def test_zero_singular_values_have_no_vectors() -> None:
    column, row = torch.arange(1.0, 5.0, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    u, s, v = triples(torch.outer(column, row))
    assert s[1:].tolist() == [0.0, 0.0]
    assert not u[:, 1:].any()
    assert not v[:, 1:].any()
    torch.testing.assert_close((u * s) @ v.mT, torch.outer(column, row))
    for shape in ((0, 3), (3, 0), (0, 0)):
        found = triples(torch.zeros(shape, dtype=torch.float64))
        assert [part.shape for part in found] == [(shape[0], 0), (0,), (shape[1], 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zero_vectors_change_nothing(dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(1, dtype=dtype)
    got = tsv_merge(base, {"a": base, "b": base})
    assert all(torch.equal(got[name], base[name]) for name in base)
    # A task that did not change a matrix adds no directions of its own.
    half = tsv_merge(base, {"a": base, "b": finetuned["task1"]}, dtype=torch.float64)
    for name in MATRICES:
        delta = (finetuned["task1"][name].double() - base[name].double()).numpy()
        u, s, vh = np.linalg.svd(delta, full_matrices=False)
        k = len(s) // 2
        wanted = base[name].double().numpy() + (u[:, :k] * s[:k]) @ vh[:k]
        np.testing.assert_allclose(half[name].numpy(), wanted, atol=1e-6)


def test_text_projections_and_other_tensors_are_averaged() -> None:
    base, finetuned = oracle.models(3)
    got, wanted = tsv_merge(base, finetuned), average(base, finetuned)
    for name in ("conv1.weight", "text_projection", "ln.bias", "scale"):
        assert torch.equal(got[name], wanted[name])
    # Fewer singular values than tasks: none is kept.
    assert torch.equal(got["row.weight"], base["row.weight"])


def test_it_has_its_name_and_goes_behind_dare() -> None:
    base, finetuned = oracle.models(2)
    got = merge("tsv", base, finetuned, settings={"scale": 0.5}).weights
    assert all(torch.equal(got[name], value) for name, value in tsv_merge(base, finetuned, scale=0.5).items())
    assert Tsv.coefficient == "scale"
    thin = merge("tsv", base, finetuned, dare=Dare(0.5)).weights
    assert all(bool(value.isfinite().all()) for value in thin.values())


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", True])
def test_a_scale_that_is_no_number_is_refused(scale: object) -> None:
    with pytest.raises(StaError, match="scale must be a finite number, and is"):
        Tsv(scale)  # type: ignore[arg-type]
