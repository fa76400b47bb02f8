"""Anchored regression: the oracle, what its definition implies, and what is refused."""

import numpy as np
import pytest
import torch

from sta_lightning.arithmetic import merge
from sta_lightning.arithmetic.baselines.anchored import Anchored
from sta_lightning.errors import StaError
from tests.arithmetic.by_name import by_name
from tests.arithmetic.test_spectral_sta import models

anchored, spectral_sta = by_name("anchored", "grams"), by_name("spectral_sta", "grams")

State = dict[str, torch.Tensor]


def oracle(deltas: list[np.ndarray], rows: list[np.ndarray], anchor: np.ndarray, ridge: float) -> np.ndarray:
    """Least squares over the inputs, and as many more rows that hold every weight at the anchor."""
    units = [x / np.sqrt(np.square(x).sum() / x.shape[1]) for x in rows]
    size = anchor.shape[1]
    held = np.sqrt(ridge * sum(np.square(x).sum() for x in units) / size) * np.eye(size)
    answers = [x @ delta.T for x, delta in zip(units, deltas, strict=True)]
    return np.linalg.lstsq(np.vstack([*units, held]), np.vstack([*answers, held @ anchor.T]), rcond=None)[0].T


@pytest.mark.parametrize(("tasks", "shape"), [(1, (6, 4)), (2, (9, 6)), (3, (6, 12))])
@pytest.mark.parametrize("ridge", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("inner", ["spectral_sta", "swudi_a", "ties"])
def test_it_is_least_squares_with_rows_that_hold(
    tasks: int, shape: tuple[int, int], ridge: float, inner: str
) -> None:
    base, finetuned, grams, inputs = models(tasks, shape, seed=tasks)
    names = sorted(finetuned)
    deltas = [(finetuned[t]["w"].double() - base["w"].double()).numpy() for t in names]
    # As the anchor is within it: with a coefficient of 1, where it has one.
    settings = {} if inner == "spectral_sta" else {"scale": 1.0}
    start = merge(inner, base, finetuned, grams=grams, settings=settings)
    anchor = (start.weights["w"].double() - base["w"].double()).numpy()
    for metric, rows in (("inputs", [inputs[t] for t in names]), ("changes", deltas)):
        got = anchored(base, finetuned, grams, inner=inner, ridge=ridge, metric=metric)
        wanted = base["w"].double().numpy() + oracle(deltas, rows, anchor, ridge)
        np.testing.assert_allclose(got["w"].double().numpy(), wanted, atol=3e-6)
        assert torch.equal(got["b"], start.weights["b"])


def test_held_firmly_it_is_the_anchor() -> None:
    base, finetuned, grams, _ = models(3, (6, 8), seed=0)
    got = anchored(base, finetuned, grams, ridge=1e9)["w"]
    torch.testing.assert_close(got, spectral_sta(base, finetuned, grams)["w"], atol=1e-6, rtol=0)


def test_it_needs_what_its_parts_need() -> None:
    assert (Anchored().needs_grams, Anchored().data) == (True, "unlabelled samples")
    free = Anchored(inner="tsv", metric="changes")
    assert (free.needs_grams, free.data, free.scope) == (False, "nothing", "tensor")
    assert Anchored(inner="ties").needs_grams
    assert Anchored(inner="fisher").needs_importance
    base, finetuned, _, _ = models(2, (4, 4), seed=0)
    with pytest.raises(StaError, match=r"Gram matrices of the layers' inputs, and none were given"):
        merge("anchored", base, finetuned, settings={"inner": "tsv"})
    assert bool(merge("anchored", base, finetuned, settings={"inner": "tsv", "metric": "changes"}).weights)


def test_dead_inputs_leave_the_anchor() -> None:
    base, finetuned, grams, _ = models(2, (6, 6), seed=2)
    dead = {task: {"w": torch.zeros(6, 6)} for task in grams}
    wanted = spectral_sta(base, finetuned, dead)["w"]
    torch.testing.assert_close(anchored(base, finetuned, dead)["w"], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ridge": 0.0}, r"ridge must be a number in \(0, inf\)"),
        ({"metric": "outputs"}, r"metric='outputs' was asked for; choose one of 'inputs', 'changes'"),
        ({"inner": "lines"}, r"cannot start from what 'lines' makes.*'spectral_sta', 'average'"),
        ({"inner": "fisherman"}, r"'fisherman' is unknown"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(StaError, match=message):
        Anchored(**wrong)  # type: ignore[arg-type]
