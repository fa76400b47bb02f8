from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from sta_lightning.encoders import architectures, build_clip, build_encoder, empty_encoder, sources, tokenize
from sta_lightning.errors import StaError
from sta_lightning.weights import save_weights


@pytest.fixture
def clip() -> Any:
    torch.manual_seed(3)
    return build_clip("miniature", "random").eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def same(first: Any, second: Any) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_random_weights_follow_the_callers_seed(clip: Any, images: Tensor) -> None:
    torch.manual_seed(3)
    encoder = build_encoder("miniature", "random").eval()
    assert same(encoder, clip.visual)
    assert not same(build_encoder("miniature", "random"), encoder)
    assert encoder(images).shape == (2, 128)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_parameter_names_are_those_of_vit_b_16(clip: Any) -> None:
    with torch.device("meta"):
        large = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"))

    def names(model: Any) -> set[str]:
        return {re.sub(r"resblocks\.\d+", "resblocks.N", name) for name in model.state_dict()}

    assert names(clip) == names(large)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_whole_clip_in_half_precision(clip: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    half = {name: tensor.half() for name, tensor in clip.state_dict().items()}
    save_weights(path, half) if suffix == ".safetensors" else torch.save(half, path)
    built = build_clip("miniature", str(path))
    rounded = {name: tensor.float() for name, tensor in half.items()}
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in built.state_dict().items())
    assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}
    assert same(build_encoder("miniature", str(path)), built.visual)


@pytest.mark.parametrize("prefix", ["", "visual.", "encoder.", "model.visual."])
def test_image_encoder_alone(clip: Any, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "encoder.safetensors"
    save_weights(path, {prefix + name: tensor for name, tensor in clip.visual.state_dict().items()})
    assert same(build_encoder("miniature", str(path)), clip.visual)
    with pytest.raises(StaError, match="image encoder alone"):
        build_clip("miniature", str(path))


def test_building_from_a_file_leaves_the_random_state_alone(clip: Any, tmp_path: Path) -> None:
    save_weights(tmp_path / "clip.safetensors", clip.state_dict())
    before = torch.get_rng_state()
    build_encoder("miniature", str(tmp_path / "clip.safetensors"))
    assert torch.equal(before, torch.get_rng_state())


def test_positions_are_resampled_to_another_size(clip: Any, tmp_path: Path) -> None:
    save_weights(tmp_path / "clip.safetensors", clip.state_dict())
    save_weights(tmp_path / "encoder.safetensors", clip.visual.state_dict())
    large = build_encoder("miniature", str(tmp_path / "clip.safetensors"), 48)
    assert large(torch.zeros(1, 3, 48, 48)).shape == (1, 128)
    own, resampled = clip.visual.positional_embedding, large.state_dict()["positional_embedding"]
    assert resampled.shape == (37, 192)
    assert torch.equal(resampled[0], own[0])
    grids = (table[1:].T.reshape(1, 192, side, side) for table, side in ((own, 4), (resampled, 6)))
    expected, found = grids
    expected = torch.nn.functional.interpolate(expected, size=(6, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(found, expected)
    assert same(build_encoder("miniature", str(tmp_path / "encoder.safetensors"), 48), large)


def test_embedded_weights_missing_or_shipped(
    clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "miniature.safetensors"
    monkeypatch.setattr(sources, "MINIATURE_WEIGHTS", path)
    with pytest.raises(
        StaError, match=r"miniature\.safetensors.*sta fit --config configs/pretrain/miniature\.yaml"
    ):
        build_encoder("miniature")
    save_weights(path, clip.state_dict())
    assert same(build_encoder("miniature"), clip.visual)


def test_wrong_weights_are_told(clip: Any, tmp_path: Path) -> None:
    with pytest.raises(StaError, match=r"'nowhere\.safetensors'.*no such file"):
        build_encoder("miniature", "nowhere.safetensors")
    with pytest.raises(StaError, match=r"'ViT-B-16' needs weights.*'openai'"):
        build_encoder("ViT-B-16")
    with pytest.raises(StaError, match=r"'opanai' of 'ViT-B-16'.*'openai'"):
        build_encoder("ViT-B-16", "opanai")
    state = clip.state_dict()
    lacking = {name: tensor for name, tensor in state.items() if name != "visual.proj"}
    save_weights(tmp_path / "lacking.safetensors", lacking)
    with pytest.raises(StaError, match=r"missing 1 tensor: 'visual\.proj'"):
        build_clip("miniature", str(tmp_path / "lacking.safetensors"))
    save_weights(tmp_path / "other.safetensors", {**state, "visual.proj": torch.zeros(192, 64)})
    with pytest.raises(StaError, match=r"shapes differ in 'visual\.proj"):
        build_encoder("miniature", str(tmp_path / "other.safetensors"))
    with pytest.raises(StaError, match="no text tower"):
        build_clip("timm/deit_tiny_patch16_224", "random")


def test_registration_survives_a_rescan_of_open_clip(clip: Any, tmp_path: Path) -> None:
    (tmp_path / "another-model.json").write_text(architectures.MINIATURE_CONFIG.read_text())
    open_clip.add_model_config(tmp_path / "another-model.json")
    assert "sta-miniature" in open_clip.list_models()
    assert "miniature" not in open_clip.list_models()
    build_encoder("miniature", "random")


def test_tokens_are_clips_own() -> None:
    texts = ["a photo of a cat.", "the number 7, written by hand."]
    found = tokenize("miniature", texts)
    assert found.dtype == torch.int64
    assert torch.equal(found, open_clip.SimpleTokenizer(context_length=24)(texts))
    assert tokenize("ViT-B-16", texts).shape == (2, 77)
    with pytest.raises(StaError, match="no text tower"):
        tokenize("timm/deit_tiny_patch16_224", texts)


def test_a_converted_file_says_which_activation_it_wants(clip: Any, tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_weights(path, clip.state_dict(), {"converted": json.dumps({"activation": "gelu"})})
    assert same(build_encoder("miniature", str(path)), clip.visual)
    save_weights(path, clip.state_dict(), {"converted": json.dumps({"activation": "quick_gelu"})})
    with pytest.raises(StaError, match=r"trained with QuickGELU.*Name the encoder 'miniature-quickgelu'"):
        build_encoder("miniature", str(path))
    # Of another program's entry of that name nothing can be said.
    for entry in ("yesterday", "3", '{"activation": null}'):
        save_weights(path, clip.state_dict(), {"converted": entry})
        assert same(build_encoder("miniature", str(path)), clip.visual)


def test_an_empty_encoder_is_the_architecture_without_a_draw(clip: Any) -> None:
    before = torch.get_rng_state()
    empty = empty_encoder("miniature", "anything", 48)
    assert torch.equal(before, torch.get_rng_state())
    assert empty(torch.zeros(1, 3, 48, 48)).shape == (1, 128)
    assert empty.state_dict().keys() == clip.visual.state_dict().keys()
    assert empty_encoder("timm/test_vit", "anything").state_dict()


def test_open_clip_is_quiet_about_random_weights(caplog: pytest.LogCaptureFixture) -> None:
    build_encoder("miniature", "random")
    assert "initialized randomly" not in caplog.text
