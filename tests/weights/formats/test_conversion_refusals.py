"""Conversions that are refused: a message with file and remedy, and no file is written."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sta_lightning.errors import StaError
from sta_lightning.weights import provenance, save_weights
from sta_lightning.weights.formats import convert
from tests.weights.formats.tiny import CONFIGS, NAMES, tiny_clip


@pytest.mark.parametrize(
    ("drop", "expected"),
    [
        ("visual.ln_post.weight", r"lacks 'visual\.ln_post\.weight'"),
        (
            "visual.transformer.resblocks.1.mlp.c_fc.bias",
            r"lacks 'visual\.transformer\.resblocks\.1\.mlp\.c_fc\.bias'",
        ),
        ("visual.positional_embedding", r"lacks 'visual\.positional_embedding'"),
    ],
)
def test_missing_tensors_are_named(drop: str, expected: str, tmp_path: Path) -> None:
    state = tiny_clip().state_dict()
    del state[drop]
    torch.save(state, tmp_path / "in.pt")
    with pytest.raises(StaError, match=rf"in\.pt' is not whole: it {expected}"):
        convert(tmp_path / "in.pt", tmp_path / "o.safetensors", "open_clip", configs=CONFIGS)


def test_tensors_of_no_clip_are_named(tmp_path: Path) -> None:
    state = {**tiny_clip().state_dict(), "visual.adapter.weight": torch.ones(1)}
    torch.save(state, tmp_path / "in.pt")
    with pytest.raises(StaError, match=r"in\.pt' has tensors .* that no CLIP has: 'visual\.adapter\.weight'"):
        convert(tmp_path / "in.pt", tmp_path / "o.safetensors", "open_clip", configs=CONFIGS)


def test_a_block_of_another_shape_is_named(tmp_path: Path) -> None:
    state = tiny_clip().state_dict()
    state["visual.transformer.resblocks.1.mlp.c_fc.bias"] = torch.ones(7)
    torch.save(state, tmp_path / "in.pt")
    with pytest.raises(StaError, match=r"of another shape .*resblocks\.\d\.mlp\.c_fc\.bias"):
        convert(tmp_path / "in.pt", tmp_path / "o.safetensors", "open_clip", configs=CONFIGS)


def test_another_architecture_is_told(tmp_path: Path) -> None:
    torch.save(tiny_clip().state_dict(), tmp_path / "in.pt")
    other = {**CONFIGS["tiny-clip"], "vision_cfg": {**CONFIGS["tiny-clip"]["vision_cfg"], "width": 48}}
    arguments: dict[str, Any] = {"configs": {**CONFIGS, "wide": other}}
    out = tmp_path / "o.safetensors"
    with pytest.raises(StaError, match=r"in\.pt' is no wide: .*\(width 32, not 48\).*'tiny-clip'"):
        convert(tmp_path / "in.pt", out, "open_clip", encoder="wide", **arguments)
    with pytest.raises(
        StaError, match=r"--encoder 'nothing' is not known.*'tiny-clip', 'tiny-clip-quickgelu'"
    ):
        convert(tmp_path / "in.pt", out, "open_clip", encoder="nothing", **arguments)
    state = {n: v for n, v in tiny_clip().visual.state_dict().items() if not n.startswith("ln_pre")}
    torch.save(state, tmp_path / "base.pt")
    with pytest.raises(
        StaError, match=r"pretrained .*base\.pt': unknown 2 tensors: 'ln_pre\.bias', 'ln_pre\.weight'"
    ):
        convert(tmp_path / "in.pt", out, "open_clip", pretrained=tmp_path / "base.pt", **arguments)


def test_how_it_computes_must_be_known_for_hugging_face(tmp_path: Path) -> None:
    torch.save(tiny_clip().visual.state_dict(), tmp_path / "in.pt")
    with pytest.raises(
        StaError, match=r"in\.pt' does not say which activation.*--encoder.*'tiny-clip-quickgelu'"
    ):
        convert(tmp_path / "in.pt", tmp_path / "out", "huggingface", configs=CONFIGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["importance:lp", "head", "probabilities", "vector:sta"])
def test_files_that_hold_no_model(kind: str, tmp_path: Path) -> None:
    state = {f"visual.{n}": v for n, v in tiny_clip().visual.state_dict().items()}
    save_weights(tmp_path / "in.safetensors", state, provenance(kind, {}, {}))
    with pytest.raises(StaError, match=rf"in\.safetensors' holds no weights of a model, but '{kind}'"):
        convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", "safetensors", configs=CONFIGS)


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    torch.save(tiny_clip().state_dict(), tmp_path / "in.pt")
    arguments: dict[str, Any] = {"configs": CONFIGS, "encoder": NAMES["gelu"]}
    with pytest.raises(StaError, match=r"a name that ends in \.safetensors"):
        convert(tmp_path / "in.pt", tmp_path / "out.pt", "open_clip", **arguments)
    with pytest.raises(StaError, match="writes a folder"):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors", "huggingface", **arguments)
    full = tmp_path / "full"
    full.mkdir()
    convert(tmp_path / "in.pt", full, "huggingface", **arguments)  # empty: it is filled
    before = {file.name: file.read_bytes() for file in full.iterdir()}
    with pytest.raises(StaError, match="there is something already"):
        convert(tmp_path / "in.pt", full, "huggingface", **arguments)
    assert {file.name: file.read_bytes() for file in full.iterdir()} == before


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    state = {**tiny_clip().state_dict(), "visual.proj": torch.full((32, 12), 1e6)}
    torch.save(state, tmp_path / "in.pt")
    arguments: dict[str, Any] = {"configs": CONFIGS, "encoder": NAMES["gelu"], "dtype": torch.float16}
    with pytest.raises(StaError, match="too large"):
        convert(tmp_path / "in.pt", tmp_path / "deep" / "out", "huggingface", **arguments)
    assert list((tmp_path / "deep").iterdir()) == []
