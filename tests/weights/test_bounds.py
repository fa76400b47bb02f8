"""Smallest and largest entries, to a file's metadata and back bit for bit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sta_lightning.errors import StaError
from sta_lightning.weights import load_weights, read_metadata, save_weights
from sta_lightning.weights.bounds import KEY, all_bounds, read_bounds, write_bounds


@given(
    st.dictionaries(st.text(), st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2).map(sorted))
)
def test_every_number_comes_back(pairs: dict[str, list[float]]) -> None:
    found = {name: (low, high) for name, (low, high) in pairs.items()}
    back = read_bounds({KEY: write_bounds(found)})
    assert back == found
    assert back is not None
    assert [math.copysign(1, low) for low, _ in back.values()] == [
        math.copysign(1, low) for low, _ in found.values()
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_file_tells_those_of_its_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    state = {
        "w": torch.randn(7, 3).to(dtype),
        "empty": torch.empty(0, 2, dtype=dtype),
        "one": torch.tensor(-0.1).to(dtype),
    }
    path = tmp_path / "i.safetensors"
    save_weights(path, {**state, "count": torch.tensor(3)}, {KEY: write_bounds(all_bounds(state))})
    found = read_bounds(read_metadata(path))
    assert found == all_bounds(load_weights(path))
    assert found is not None
    assert list(found) == ["w", "empty", "one"]
    assert found["w"] == (state["w"].min().item(), state["w"].max().item())
    assert found["empty"] == (0.0, 0.0)
    assert found["one"][0] == found["one"][1] == state["one"].item()


def test_a_file_without_them() -> None:
    assert read_bounds({"format": "pt"}) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        '{"w": 3}',
        '{"w": [1]}',
        '{"w": ["a", "b"]}',
        '{"w": [1, 2, 3]}',
        "null",
        '{"w": [2, 1]}',
        '{"w": [0, Infinity]}',
    ],
)
def test_something_else_under_their_name(text: str) -> None:
    with pytest.raises(StaError, match=r"'extents' is not a table.*make the file again"):
        read_bounds({KEY: text})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_json_cannot_hold(bad: float) -> None:
    with pytest.raises(StaError, match="cannot be recorded"):
        write_bounds({"w": (0.0, bad)})
