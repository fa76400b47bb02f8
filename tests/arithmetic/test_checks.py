"""Checks of what is given."""

import pytest
import torch

from sta_lightning.arithmetic import check_compatible, check_finite, check_importance
from sta_lightning.errors import StaError, listed


def test_matching_models_pass() -> None:
    model = {"w": torch.ones(2), "n": torch.tensor(1), "e": torch.zeros(0)}
    check_compatible(model, {**model, "w": torch.ones(2).half()}, reference_name="a", other_name="b")
    check_importance(model, {"w": torch.ones(2), "e": torch.zeros(0)}, name="scores")
    check_importance(model, {**model}, name="scores that cover the buffer too")


def test_every_difference_of_names_is_in_one_message() -> None:
    reference = {f"w{i}": torch.ones(1) for i in range(8)}
    with pytest.raises(StaError) as error:
        check_compatible(reference, {"v": torch.ones(1)}, reference_name="the base", other_name="model.ckpt")
    message = str(error.value)
    assert message.startswith("model.ckpt does not match the base: missing 8 tensors: 'w0', 'w1'")
    assert "and 3 more" in message
    assert "unknown 1 tensor: 'v'" in message


def test_float8_is_looked_at_too() -> None:
    check_finite({"w": torch.ones(2).to(torch.float8_e4m3fn)}, "model")
    with pytest.raises(StaError, match="model holds NaN or Inf in 1 tensor: 'w'"):
        check_finite({"w": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}, "model")


def test_listed() -> None:
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed("abcdefg") == "'a', 'b', 'c', 'd', 'e' and 2 more"
