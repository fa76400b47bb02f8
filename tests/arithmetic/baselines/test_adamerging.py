"""AdaMerging's weighted sum and entropy, against NumPy in float64 and finite differences."""

from collections.abc import Callable
from decimal import Decimal, getcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sta_lightning.arithmetic import task_arithmetic
from sta_lightning.arithmetic.baselines.adamerging import combine, entropy
from sta_lightning.arithmetic.states import floating_names
from sta_lightning.arithmetic.vectors import task_vector
from sta_lightning.errors import StaError

State = dict[str, Tensor]


@pytest.fixture
def models(suite: Callable[..., Any]) -> Callable[..., tuple[State, dict[str, State]]]:
    def build(dtype: torch.dtype = torch.float64) -> tuple[State, dict[str, State]]:
        made = suite(tasks=3, seed=4, dtype=dtype)
        return made.pretrained, {
            task: task_vector(made.pretrained, model) for task, model in made.finetuned.items()
        }

    return build


def drawn(*shape: int, seed: int = 0, spread: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("granularity", ["task", "tensor"])
def test_the_sum_is_numpy_s(models: Callable[..., Any], granularity: str, dtype: torch.dtype) -> None:
    pretrained, vectors = models(dtype)
    names = floating_names(pretrained)
    grid = torch.rand(3, len(names), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if granularity == "task":
        grid = grid[:, :1].expand(-1, len(names))
    merged = combine(pretrained, vectors, grid[:, 0] if granularity == "task" else grid)
    assert list(merged) == list(pretrained)
    assert merged["steps"] is pretrained["steps"]
    for column, name in enumerate(names):
        expected = pretrained[name].double().numpy() + sum(
            (
                grid[row, column].item() * vector[name].double().numpy()
                for row, vector in enumerate(vectors.values())
            ),
            start=np.zeros(pretrained[name].shape),
        )
        work = torch.float64 if dtype == torch.float64 else torch.float32
        assert merged[name].dtype == work
        tolerance = 1e-15 if work == torch.float64 else 5e-7
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=tolerance, atol=tolerance)


def test_a_coefficient_for_every_row_weighs_that_row(models: Callable[..., Any]) -> None:
    pretrained, vectors = models()
    names = floating_names(pretrained)
    counts = [pretrained[name].shape[0] if pretrained[name].shape else 1 for name in names]
    grid = drawn(3, sum(counts), seed=3).requires_grad_()
    merged = combine(pretrained, vectors, grid)
    slopes = {name: drawn(*pretrained[name].shape, seed=7) for name in names}
    sum((merged[name] * slopes[name]).sum() for name in names).backward()  # type: ignore[union-attr]
    assert grid.grad is not None
    place = 0
    for name, count in zip(names, counts, strict=True):
        for row in range(count):
            at = (row,) if pretrained[name].shape else ()
            expected = pretrained[name].numpy()[at].copy()
            for task, vector in enumerate(vectors.values()):
                expected = expected + grid[task, place].item() * vector[name].numpy()[at]
                slope = (vector[name].numpy()[at] * slopes[name].numpy()[at]).sum()
                assert grid.grad[task, place].item() == pytest.approx(slope, rel=1e-12)
            np.testing.assert_allclose(merged[name].detach().numpy()[at], expected, rtol=1e-14, atol=1e-15)
            place += 1


def test_equal_coefficients_are_task_arithmetic(suite: Callable[..., Any]) -> None:
    made = suite(tasks=3)
    vectors = {task: task_vector(made.pretrained, model) for task, model in made.finetuned.items()}
    expected = task_arithmetic(made.pretrained, made.finetuned, scale=0.3)
    for coefficients in (torch.full((3,), 0.3), torch.full((3, 5), 0.3)):
        for name, tensor in combine(made.pretrained, vectors, coefficients).items():
            torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize("granularity", ["task", "tensor"])
def test_the_coefficients_gradient_is_that_of_finite_differences(
    models: Callable[..., Any], granularity: str
) -> None:
    pretrained, vectors = models()
    names = floating_names(pretrained)
    start = drawn(3, seed=2) if granularity == "task" else drawn(3, len(names), seed=2)
    weights = {name: drawn(*pretrained[name].shape, seed=index) for index, name in enumerate(names)}

    def value(coefficients: Tensor) -> Tensor:
        merged = combine(pretrained, vectors, coefficients)
        logits = torch.stack(
            [(merged[name].sin() * weights[name]).sum() for name in names if name != "empty"]
        )
        return entropy(logits.reshape(2, 2))

    coefficients = start.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(coefficients), coefficients)
    step = 1e-6
    for place in range(start.numel()):
        shift = torch.zeros_like(start)
        shift.view(-1)[place] = step
        expected = (value(start + shift) - value(start - shift)) / (2 * step)
        assert found.view(-1)[place].item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-9)


def test_the_gradient_counts_the_entries_of_its_own_tensor(models: Callable[..., Any]) -> None:
    pretrained, vectors = models()
    names = floating_names(pretrained)
    coefficients = torch.zeros(3, len(names), dtype=torch.float64, requires_grad=True)
    sum(combine(pretrained, vectors, coefficients)[name].sum() for name in names).backward()  # type: ignore[union-attr]
    expected = [[float(vector[name].sum()) for name in names] for vector in vectors.values()]
    assert coefficients.grad is not None
    torch.testing.assert_close(coefficients.grad, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 30.0])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4), (6,), (4, 1)])
def test_the_entropy_is_numpy_s(shape: tuple[int, ...], spread: float) -> None:
    logits = drawn(*shape, seed=3, spread=spread)
    shifted = np.exp(logits.numpy() - logits.numpy().max(-1, keepdims=True))
    p = shifted / shifted.sum(-1, keepdims=True)
    expected = -(p * np.log(np.where(p > 0, p, 1))).sum(-1).mean()
    assert entropy(logits).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    assert entropy(logits.float()).item() == pytest.approx(expected, rel=2e-6, abs=1e-30)
    assert entropy(logits).dtype == torch.float64
    assert entropy(logits.half()).dtype == torch.float32
    torch.testing.assert_close(entropy(logits + 1000.0), entropy(logits), rtol=1e-10, atol=0)


@pytest.mark.parametrize("gap", [1.0, 17.0, 40.0, 80.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certain_prediction_keeps_its_digits(gap: float, dtype: torch.dtype) -> None:
    # Two classes: H = log(1 + e) + gap * e / (1 + e), e = exp(-gap), here to 50 digits.
    getcontext().prec = 50
    small = Decimal(-gap).exp()
    expected = float((1 + small).ln() + Decimal(gap) * small / (1 + small))
    logits = torch.tensor([[gap, 0.0]], dtype=dtype, requires_grad=True)
    found = entropy(logits)
    digits = 8 * torch.finfo(dtype).eps
    assert found.item() == pytest.approx(expected, rel=digits)
    (gradient,) = torch.autograd.grad(found, logits)
    # dH/dx_0 = -p_0 * p_1 * gap
    slope = float(-Decimal(gap) * small / (1 + small) ** 2)
    assert gradient[0].tolist() == pytest.approx([slope, -slope], rel=digits)


def test_the_entropy_s_gradient() -> None:
    logits = drawn(3, 5, seed=5, spread=2.0).requires_grad_()
    assert torch.autograd.gradcheck(entropy, (logits,))
    ties = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(entropy, (ties,))


def test_a_class_that_cannot_be_leaves_no_trace() -> None:
    plain = torch.tensor([[1.0, 2.0]], requires_grad=True)
    more = torch.tensor([[1.0, -torch.inf, 2.0]], requires_grad=True)
    assert entropy(more) == entropy(plain)
    (expected,) = torch.autograd.grad(entropy(plain), plain)
    (found,) = torch.autograd.grad(entropy(more), more)
    assert found[0].tolist() == [expected[0, 0].item(), 0.0, expected[0, 1].item()]


def test_mistakes(models: Callable[..., Any]) -> None:
    pretrained, vectors = models()
    for coefficients in (torch.ones(2), torch.ones(3, 4), torch.ones(()), torch.ones(1, 3, 5)):
        with pytest.raises(StaError, match=r"shape \(3,\), one a task, \(3, 5\), one"):
            combine(pretrained, vectors, coefficients)
    with pytest.raises(StaError, match="nothing to merge"):
        combine(pretrained, {}, torch.ones(0))
    broken = {**vectors, "task1": {**vectors["task1"], "blocks.0.b": torch.ones(3)}}
    with pytest.raises(StaError, match=r"'task1'.*'blocks\.0\.b'"):
        combine(pretrained, broken, torch.ones(3))
    for logits in (torch.ones(0, 3), torch.ones(3, 0), torch.tensor(1.0)):
        with pytest.raises(StaError, match="one row and one class"):
            entropy(logits)
