"""How near a merged layer's outputs are, beside NumPy on the inputs themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sta_lightning.arithmetic.output_error import output_error


def test_it_is_the_squared_distance_of_the_outputs_beside_what_fine_tuning_did() -> None:
    draw = np.random.default_rng(0)
    delta, merged, inputs = (draw.standard_normal(shape) for shape in ((4, 6), (4, 6), (50, 6)))
    expected = (
        np.linalg.norm(inputs @ merged.T - inputs @ delta.T) ** 2 / np.linalg.norm(inputs @ delta.T) ** 2
    )
    gram = inputs.T @ inputs / len(inputs)
    found = output_error(*map(torch.from_numpy, (merged, delta, gram)))
    assert found == pytest.approx(expected, rel=1e-12)
    single = output_error(*(torch.from_numpy(part).float() for part in (merged, delta, gram)))
    assert single == pytest.approx(expected, rel=1e-5)


def test_the_ends_of_its_scale() -> None:
    delta, gram = torch.tensor([[1.0, 2.0]]), torch.diag(torch.tensor([1.0, 0.0]))
    assert output_error(delta, delta, gram) == 0
    assert output_error(torch.zeros(1, 2), delta, gram) == 1
    # What no input meets is nothing missed; where fine-tuning changed no output there is no share.
    assert output_error(torch.tensor([[1.0, 9.0]]), delta, gram) == 0
    assert output_error(delta, torch.tensor([[0.0, 2.0]]), gram) is None
