"""What of Hugging Face's layout cannot be read or written, and how that is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sta_lightning.errors import StaError
from sta_lightning.weights.formats import convert
from tests.weights.formats.theirs import save, their_features, theirs, transformers
from tests.weights.formats.tiny import CONFIGS, NAMES, read, tiny_clip, to_open_clip


def test_what_is_missing_or_unknown_is_named(tmp_path: Path) -> None:
    state = theirs("CLIPVisionModelWithProjection", "gelu").state_dict()
    for name, expected in {
        "vision_model.encoder.layers.1.self_attn.k_proj.bias": r"'transformer\.resblocks\.1\.attn\.in_proj_bias'",
        "vision_model.pre_layrnorm.weight": r"'ln_pre\.weight'",
        "vision_model.encoder.layers.0.mlp.fc2.bias": r"'transformer\.resblocks\.0\.mlp\.c_proj\.bias'",
    }.items():
        with pytest.raises(StaError, match=expected):
            to_open_clip({key: value for key, value in state.items() if key != name})
    with pytest.raises(StaError, match=r"'adapter\.weight' have no place"):
        to_open_clip({**state, "vision_model.adapter.weight": torch.ones(1)})
    odd = {**state, "vision_model.encoder.layers.1.self_attn.k_proj.weight": torch.ones(32, 31)}
    with pytest.raises(StaError, match="differ in type or width"):
        to_open_clip(odd)


def test_shards_that_are_missing_or_wrong(tmp_path: Path) -> None:
    model = theirs("CLIPModel", "gelu")
    save(model, tmp_path / "theirs", "shards")
    shards = sorted((tmp_path / "theirs").glob("model-*.safetensors"))
    with pytest.raises(StaError, match=r"is one of \d+ shards.*Give the folder"):
        read(shards[0])
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[: len(content) // 2])
    with pytest.raises(StaError, match=f"{shards[1].name}' is not a whole safetensors file"):
        read(tmp_path / "theirs")
    shards[1].write_bytes(shards[2].read_bytes())
    with pytest.raises(StaError, match=f"{shards[1].name}' lacks the tensor"):
        read(tmp_path / "theirs")
    shards[1].unlink()
    with pytest.raises(StaError, match=f"1 are missing: '{shards[1].name}'"):
        read(tmp_path / "theirs")
    index = tmp_path / "theirs" / "model.safetensors.index.json"
    for bad in ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../b.safetensors"}}'):
        index.write_text(bad)
        with pytest.raises(StaError, match=r"index\.json'.*(again|Download)"):
            read(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "siglip"}, "type 'siglip', not CLIP"),
        ({"hidden_act": "relu"}, "activations \\['relu'\\]"),
        ({"layer_norm_eps": 1e-6}, "layer norms that add 1e-06"),
        ({"num_attention_heads": "two"}, "is damaged"),
    ],
)
def test_a_config_of_another_model(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    theirs("CLIPVisionModelWithProjection", "gelu").save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(StaError, match=expected):
        convert(tmp_path / "theirs", tmp_path / "o.safetensors", "safetensors", configs=CONFIGS)
    file.write_text("{")
    with pytest.raises(StaError, match=r"config\.json' is not readable as JSON"):
        convert(tmp_path / "theirs", tmp_path / "o.safetensors", "safetensors", configs=CONFIGS)


def test_other_layer_norms_stay_in_hugging_faces_layout(tmp_path: Path) -> None:
    model = theirs("CLIPVisionModelWithProjection", "gelu")
    model.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layer_norm_eps": 0.1}))
    convert(tmp_path / "theirs", tmp_path / "out", "huggingface", configs=CONFIGS)
    one, two = (
        transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / name).eval()
        for name in ("theirs", "out")
    )
    kind = "CLIPVisionModelWithProjection"
    assert torch.equal(their_features(one, kind), their_features(two, kind))
    assert not torch.allclose(their_features(one, kind), their_features(model, kind), atol=1e-3)


def test_a_model_that_has_no_place_there(tmp_path: Path) -> None:
    state = tiny_clip().visual.state_dict()
    scales = {f"transformer.resblocks.{block}.ls_1.gamma": torch.ones(32) for block in range(2)}
    torch.save({**state, **scales}, tmp_path / "a.pt")
    with pytest.raises(StaError, match=r"no place for 'transformer\.resblocks\.0\.ls_1\.gamma'"):
        convert(tmp_path / "a.pt", tmp_path / "out", "huggingface", configs=CONFIGS, encoder=NAMES["gelu"])
    assert not (tmp_path / "out").exists()
