"""Where Cholesky's factors stand in for a spectrum: the oracle on both sides of the limit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sta_lightning.arithmetic import quadratic as subject
from tests.arithmetic.by_name import by_name
from tests.oracles import quadratic

State = dict[str, Tensor]
OUT, INPUTS, TASKS = 12, 20, 4

wudi, actmat = by_name("wudi"), by_name("actmat")


def models(directions: int, spread: float = 0.0) -> tuple[State, dict[str, State], list[np.ndarray]]:
    """A matrix, fine-tuned ones whose changes have so many directions, and the changes.

    The lengths of the directions fall by factors of ten, ``spread`` of them in all.
    """
    generator = torch.Generator().manual_seed(directions)
    base = torch.zeros(OUT, INPUTS, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(INPUTS, directions, generator=generator, dtype=torch.float64)).Q
    scaled = basis * torch.logspace(0, -spread, directions, dtype=torch.float64)
    deltas = [
        torch.randn(OUT, directions, generator=generator, dtype=torch.float64) @ scaled.mT
        for _ in range(TASKS)
    ]
    return {"w": base}, {f"t{i}": {"w": d} for i, d in enumerate(deltas)}, [d.numpy() for d in deltas]


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_a_metric_with_an_inverse_needs_no_spectrum(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(subject, "eigh")
    base, finetuned, deltas = models(INPUTS, spread)
    for got, wanted in (
        (wudi(base, finetuned), quadratic.wudi(deltas)),
        (wudi(base, finetuned, ridge=0.05), quadratic.wudi(deltas, 0.05)),
        (actmat(base, finetuned, cutoff=0.0), quadratic.actmat(deltas)),
    ):
        np.testing.assert_allclose(got["w"].numpy(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("directions", [1, 7, INPUTS - 1])
def test_a_metric_without_one_is_inverted_where_it_has_directions(directions: int) -> None:
    base, finetuned, deltas = models(directions)
    for got, wanted in (
        (wudi(base, finetuned), quadratic.wudi(deltas)),
        (wudi(base, finetuned, ridge=1e-9), quadratic.wudi(deltas, 1e-9)),
        (actmat(base, finetuned), quadratic.actmat(deltas)),
    ):
        np.testing.assert_allclose(got["w"].numpy(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [0.9, 1.1])
def test_the_least_eigenvalue_is_kept_above_the_cutoff_and_dropped_below(side: float) -> None:
    base, finetuned, deltas = models(INPUTS, 1.0)
    values = np.linalg.eigvalsh(np.sum([d.T @ d for d in deltas], axis=0))
    cutoff = side * values[0] / values[-1] / INPUTS
    wanted = quadratic.actmat(deltas, cutoff=cutoff)
    assert np.abs(wanted - quadratic.actmat(deltas)).max() > 1e-3 or side < 1
    np.testing.assert_allclose(actmat(base, finetuned, cutoff=cutoff)["w"].numpy(), wanted, rtol=0, atol=1e-6)
