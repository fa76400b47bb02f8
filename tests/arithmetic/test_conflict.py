"""How often task vectors pull in opposite directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sta_lightning.arithmetic.vectors import sign_conflict
from sta_lightning.errors import StaError


@given(st.integers(1, 4), st.integers(0, 60), st.integers(0, 2**16))
def test_the_share_is_counted_entry_by_entry(tasks: int, size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    base = generator.integers(-2, 3, size).astype(np.float32)
    models = {f"t{task}": base + generator.integers(-1, 2, size).astype(np.float32) for task in range(tasks)}
    state = {"w": torch.tensor(base), "steps": torch.tensor(1)}
    found = sign_conflict(
        state, {task: {**state, "w": torch.tensor(model)} for task, model in models.items()}
    )
    for first, one in models.items():
        for second, other in models.items():
            product = (one - base) * (other - base)
            both = int((product != 0).sum())
            wanted = float((product < 0).sum()) / both if both else 0.0
            assert found[first][second] == pytest.approx(wanted, abs=1e-12)


def test_models_that_do_not_match_are_refused() -> None:
    with pytest.raises(StaError, match="the model fine-tuned on 'a' does not match"):
        sign_conflict({"w": torch.zeros(2)}, {"a": {"v": torch.zeros(2)}})
