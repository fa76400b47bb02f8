"""Architectures by shapes: of open_clip's own models, of timm's, of the package's encoder."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from sta_lightning.encoders.architectures import MINIATURE_CONFIG
from sta_lightning.errors import StaError
from sta_lightning.weights.formats import check_whole, guess, open_clip_configs
from tests.weights.formats.tiny import CONFIGS, tiny_clip

KNOWN = open_clip_configs()


def on_meta(name: str) -> dict[str, Tensor]:
    """The shapes of an open_clip model, without its weights."""
    import open_clip

    with torch.device("meta"):
        config: Any = dict(open_clip.get_model_config(name))
        config.pop("quick_gelu", None)
        state: dict[str, Tensor] = open_clip.CLIP(**config).state_dict()
    return state


def visual(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix("visual."): v for n, v in state.items() if n.startswith("visual.")}


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("ViT-B-32", "ViT-B/32 of CLIP, 224×224 pixels"),
        ("ViT-B-16", "ViT-B/16 of CLIP, 224×224 pixels"),
        ("ViT-L-14", "ViT-L/14 of CLIP, 224×224 pixels"),
        ("ViT-L-14-336", "ViT-L/14 of CLIP, 336×336 pixels"),
        ("ViT-H-14", "ViT-H/14 of CLIP, 224×224 pixels"),
    ],
)
def test_open_clips_models(name: str, title: str) -> None:
    state = on_meta(name)
    whole, alone = guess(visual(state), state, KNOWN), guess(visual(state), None, KNOWN)
    assert whole.title == alone.title == title
    assert whole.names[0] == alone.names[0] == name
    assert f"{name}-quickgelu" in whole.names
    assert whole.text is not None
    assert alone.text is None
    assert whole.vocabulary == 49408


def test_another_image_size_fits_no_name() -> None:
    state = tiny_clip().state_dict()
    state["visual.positional_embedding"] = torch.ones(26, 32)
    found = guess(visual(state), state, CONFIGS)
    assert found.image_size == 40
    assert found.names == ()


def test_the_packages_own_encoder() -> None:
    config = json.loads(MINIATURE_CONFIG.read_text())
    import open_clip

    with torch.device("meta"):
        state = open_clip.CLIP(**config).state_dict()
    found = guess(visual(state), state, {**KNOWN, "miniature": config})
    assert found.names == ("miniature",)
    assert found.title == "miniature of CLIP, 32×32 pixels"


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("deit_tiny_patch16_224", "ViT-Ti/16 of timm, 224×224 pixels"),
        ("deit_small_distilled_patch16_224", "ViT-S/16 of timm, 224×224 pixels"),
        ("vit_base_patch32_384", "ViT-B/32 of timm, 384×384 pixels"),
        ("vit_medium_patch16_gap_256", "ViT of 12 blocks, width 512, patch 16 of timm, 256×256 pixels"),
    ],
)
def test_timms_models(name: str, title: str) -> None:
    import timm

    with torch.device("meta"):
        state = timm.create_model(name, pretrained=False).state_dict()
    assert guess(state).title == title


def test_what_is_no_vision_transformer() -> None:
    assert guess({"a": torch.ones(1)}).title == "unknown"
    found = guess({"attnpool.positional_embedding": torch.ones(2, 2)}, {"a": torch.ones(1)})
    assert found.title == "not a plain vision transformer"


def test_configurations_that_compute_something_else_are_not_named() -> None:
    # The same shapes as ViT-L-14's, with another pooling: not this model.
    state = on_meta("ViT-L-14")
    assert not [name for name in guess(visual(state), state, KNOWN).names if "CLIPA" in name]


def test_whole_models_pass() -> None:
    check_whole(tiny_clip().state_dict(), "it")
    check_whole(visual(tiny_clip().state_dict()), "it")


def test_a_block_that_is_missing_altogether_is_named() -> None:
    state = {n: v for n, v in tiny_clip().state_dict().items() if "visual.transformer.resblocks.0." not in n}
    with pytest.raises(StaError, match=r"it is not whole: it lacks 'visual\.transformer\.resblocks\.0\."):
        check_whole(state, "it")


def test_a_block_of_an_absurd_number_takes_no_time() -> None:
    state = {"transformer.resblocks.99999999999999.a": torch.ones(1), "class_embedding": torch.ones(1)}
    with pytest.raises(StaError, match=r"lacks 'conv1\.weight'"):
        check_whole(state, "it")
