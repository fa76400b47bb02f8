from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from sta_lightning.encoders import build_encoder, own_head
from sta_lightning.encoders.head import ClassificationHead
from sta_lightning.errors import StaError
from sta_lightning.weights import save_weights

NAME = "timm/test_vit"


@pytest.fixture
def whole() -> Any:
    torch.manual_seed(0)
    return timm.create_model("test_vit", pretrained=False).eval()


@pytest.fixture
def weights(whole: Any, tmp_path: Path) -> str:
    save_weights(tmp_path / "vit.safetensors", whole.state_dict())
    return str(tmp_path / "vit.safetensors")


def test_features_are_those_in_front_of_the_classifier(whole: Any, weights: str) -> None:
    images = torch.randn(2, 3, 160, 160)
    encoder = build_encoder(NAME, weights).eval()
    with torch.no_grad():
        features = encoder(images)
        assert torch.equal(features, whole.forward_head(whole.forward_features(images), pre_logits=True))
        head = ClassificationHead(*own_head(NAME, weights), normalize=False)
        torch.testing.assert_close(head(features), whole(images))
    assert not any(name.startswith("head.") for name in encoder.state_dict())


def test_another_image_size_is_resampled_as_timm_does(whole: Any, weights: str) -> None:
    from timm.models.vision_transformer import checkpoint_filter_fn

    expected = timm.create_model("test_vit", pretrained=False, img_size=96).eval()
    expected.load_state_dict(checkpoint_filter_fn(whole.state_dict(), expected))
    images = torch.randn(2, 3, 96, 96)
    encoder = build_encoder(NAME, weights, 96).eval()
    with torch.no_grad():
        found = ClassificationHead(*own_head(NAME, weights), normalize=False)(encoder(images))
        torch.testing.assert_close(found, expected(images))


def test_file_of_the_resampled_encoder_is_read_again(weights: str, tmp_path: Path) -> None:
    encoder = build_encoder(NAME, weights, 96)
    save_weights(tmp_path / "small.safetensors", encoder.state_dict())
    again = build_encoder(NAME, str(tmp_path / "small.safetensors"), 96)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in encoder.state_dict().items())


def test_random_weights_follow_the_callers_seed_and_files_leave_it_alone(weights: str) -> None:
    torch.manual_seed(5)
    first = build_encoder(NAME, "random").state_dict()
    torch.manual_seed(5)
    second = build_encoder(NAME, "random").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    before = torch.get_rng_state()
    build_encoder(NAME, weights)
    assert torch.equal(before, torch.get_rng_state())


def test_mistakes_are_told(whole: Any, weights: str, tmp_path: Path) -> None:
    with pytest.raises(StaError, match="needs weights"):
        build_encoder(NAME)
    with pytest.raises(StaError, match="no such file"):
        build_encoder(NAME, "nowhere.safetensors")
    with pytest.raises(StaError):
        build_encoder("timm/deit_tiny_patch16_224", weights)
    with pytest.raises(StaError, match="images of 100 pixels"):
        build_encoder("timm/resnet10t", "random", 100)
    headless = build_encoder(NAME, weights).state_dict()
    save_weights(tmp_path / "headless.safetensors", headless)
    with pytest.raises(StaError, match=r"no 'head\.weight'"):
        own_head(NAME, str(tmp_path / "headless.safetensors"))
    with pytest.raises(StaError, match="Only encoders of timm"):
        own_head("miniature", None)
