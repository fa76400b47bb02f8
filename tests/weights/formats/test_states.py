"""Training checkpoints: which of their state dicts is read, and what lies beside."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sta_lightning.arithmetic.sources import whole
from sta_lightning.errors import StaError
from sta_lightning.weights.formats import open_checkpoint

STATE = {"a.weight": torch.ones(2, 2), "a.bias": torch.zeros(2)}
AVERAGE = {name: tensor + 1 for name, tensor in STATE.items()}
OPTIMISER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def opened(path: Path, content: Any, state: str | None = None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    torch.save(content, path)
    with ExitStack() as stack:
        found = open_checkpoint(path, stack, state=state)
        return {name: whole(source) for name, source in found.tensors.items()}, found.states


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("model", "average"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model", "ema"),
        ("model_state_dict", "ema_state_dict"),
        ("state_dict", "ema_model"),
    ],
)
def test_a_second_state_dict_is_told_and_can_be_chosen(tmp_path: Path, model: str, average: str) -> None:
    # The average may stand first.
    for order in ((model, average), (average, model)):
        parts = {model: STATE, average: AVERAGE}
        content = {"epoch": 3, **{key: parts[key] for key in order}, "optimizer": OPTIMISER}
        found, states = opened(tmp_path / "a.pth.tar", content)
        assert same(found, STATE)
        assert states == (model, average)
        for asked in ("ema", average):
            found, states = opened(tmp_path / "a.pth.tar", content, asked)
            assert same(found, AVERAGE)
            assert states == (average, model)


def test_one_state_dict_under_any_key_is_read(tmp_path: Path) -> None:
    assert same(opened(tmp_path / "a.pt", {"ema": STATE, "epoch": 1, "optimizer": OPTIMISER})[0], STATE)
    assert same(opened(tmp_path / "a.pt", {"net": STATE})[0], STATE)


def test_a_plain_state_dict_is_one(tmp_path: Path) -> None:
    state = {**STATE, "a._extra_state": torch.ones(1)}
    found, states = opened(tmp_path / "a.pt", state)
    assert same(found, state)
    assert states == ()


def test_a_measured_tensor_beside_changes_nothing(tmp_path: Path) -> None:
    found, states = opened(tmp_path / "a.pt", {"best": torch.tensor(0.9), "state_dict": STATE})
    assert same(found, STATE)
    assert states == ("state_dict",)


@pytest.mark.parametrize(
    ("content", "asked", "complaint"),
    [
        ({"state_dict": STATE}, "ema", r"holds no state dict 'ema'; it holds 'state_dict'\."),
        (STATE, "ema", "holds no state dict 'ema'; it holds one, without a name"),
        (
            {"model": STATE, "model_ema": AVERAGE, "ema_teacher": AVERAGE},
            "ema",
            "more than one state dict 'ema'; it holds 'model', 'model_ema', 'ema_teacher'",
        ),
    ],
)
def test_what_cannot_be_chosen(tmp_path: Path, content: Any, asked: str, complaint: str) -> None:
    with pytest.raises(StaError, match=complaint):
        opened(tmp_path / "a.pt", content, asked)


def test_settings_and_numbers_beside_are_no_hindrance(tmp_path: Path) -> None:
    content = {
        "state_dict": STATE,
        "args": argparse.Namespace(lr=1.0, names=["a"]),
        "metric": np.float64(0.5),
        "epoch": np.int64(3),
    }
    assert same(opened(tmp_path / "last.pth.tar", content)[0], STATE)
