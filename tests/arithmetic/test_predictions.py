"""The divergence and the agreement of predictions, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sta_lightning.arithmetic.predictions import agreement, divergence
from sta_lightning.errors import StaError


def drawn(rows: int, classes: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * classes)
    target, logits = scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return target, logits


def probabilities(logits: Tensor) -> np.ndarray:
    values = np.exp(logits.numpy() - logits.numpy().max(-1, keepdims=True))
    return np.asarray(values / values.sum(-1, keepdims=True))


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (7, 10), (32, 397)])
def test_the_divergence_and_its_gradient(rows: int, classes: int) -> None:
    target, logits = drawn(rows, classes)
    p, q = probabilities(target), probabilities(logits)
    logits.requires_grad_()
    found = divergence(target, logits)
    assert found.item() == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-12)
    found.backward()
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), (q - p) / rows, rtol=1e-9, atol=1e-15)
    half = divergence(target.float(), logits.detach().bfloat16())
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(found.item(), rel=0.05)


def test_it_is_zero_for_equal_predictions_alone_and_not_symmetric() -> None:
    target, logits = drawn(5, 4)
    shifted = target + torch.arange(5.0)[:, None]
    assert float(divergence(target, shifted)) == pytest.approx(0, abs=1e-14)
    assert float(divergence(target, logits)) > 0.01
    assert float(divergence(target, logits)) != pytest.approx(float(divergence(logits, target)))
    # One class all but certain: no digit is lost, and nothing is not a number.
    certain = torch.tensor([[200.0, 0.0]])
    assert float(divergence(certain, torch.tensor([[0.0, 0.0]]))) == pytest.approx(np.log(2))
    assert float(divergence(certain, torch.tensor([[0.0, 200.0]]))) == pytest.approx(200)


def test_the_agreement_is_a_share() -> None:
    target = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [1.0, 2.0]])
    assert float(agreement(target, 2 * target)) == 1
    assert float(agreement(target, torch.tensor([[2.0, 1.0], [3.0, 0.0], [4.0, 5.0], [1.0, 9.0]]))) == 0.5


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((0, 3), (0, 3)), ((), ())])
def test_what_cannot_be_compared_is_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    first, second = (torch.zeros(shape) for shape in shapes)
    for measure in (divergence, agreement):
        with pytest.raises(StaError, match="of one shape"):
            measure(first, second)
