"""Layouts are told by names; what holds two encoders, or none, is told too."""

import pytest
import torch
from torch import Tensor

from sta_lightning.errors import StaError
from sta_lightning.weights.formats import Layout, recognise
from tests.weights.formats.tiny import same, tiny_clip, to_open_clip

CLIP = tiny_clip().state_dict()
VISUAL = {name.removeprefix("visual."): value for name, value in CLIP.items() if name.startswith("visual.")}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("wrapper", ["", "module.", "model.", "_orig_mod.", "clip."])
def test_a_whole_clip(wrapper: str) -> None:
    layout = recognise(under(wrapper, CLIP))
    assert (layout.kind, layout.prefix, layout.text) == ("open_clip", f"{wrapper}visual.", wrapper)
    same(to_open_clip(under(wrapper, CLIP)), CLIP)


@pytest.mark.parametrize(
    "prefix", ["", "visual.", "module.visual.", "encoder.", "encoder._orig_mod.", "module."]
)
def test_an_image_encoder_alone(prefix: str) -> None:
    beside = {"head.weight": torch.ones(2, 12), "head.bias": torch.ones(2), "logit_scale": torch.ones(())}
    layout = recognise(under(prefix, VISUAL) | (beside if prefix else {}))
    assert layout == Layout("open_clip", prefix)
    same(to_open_clip(under(prefix, VISUAL) | beside), VISUAL)


def test_a_text_tower_of_its_own_module() -> None:
    text = {name: value for name, value in CLIP.items() if not name.startswith("visual.")}
    scale = {"logit_scale": text.pop("logit_scale")}
    state = {**under("visual.", VISUAL), **under("text.", text), **scale}
    assert recognise(state).text == "text."
    same(to_open_clip(state), state)


def test_remains_of_a_text_tower_are_none() -> None:
    # The task-vectors repository deletes the blocks of the text tower and leaves the rest.
    state = {name: value for name, value in CLIP.items() if not name.startswith("transformer.")}
    assert recognise(under("model.", state)) == Layout("open_clip", "model.visual.")
    same(to_open_clip(under("model.", state)), VISUAL)


def test_openais_numbers_are_left() -> None:
    numbers = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    layout = recognise({**CLIP, **numbers})
    assert layout.openai
    same(to_open_clip({**CLIP, **numbers}), CLIP)


def test_a_classifier_beside_a_clip_is_left() -> None:
    same(to_open_clip({**CLIP, "classification_head.weight": torch.ones(2)}), CLIP)


@pytest.mark.parametrize(
    "encoder",
    [
        ["visual.conv1.weight", "visual.attnpool.positional_embedding", "visual.layer1.0.conv1.weight"],
        ["visual.trunk.stem.0.weight", "visual.head.proj.weight"],
    ],
    ids=["resnet", "timm's"],
)
def test_open_clips_other_encoders(encoder: list[str]) -> None:
    state = dict.fromkeys([*encoder, "text.token_embedding.weight"], torch.ones(1))
    assert recognise(state) == Layout("open_clip", "visual.", "text.")
    assert to_open_clip(state).keys() == state.keys()


def test_timm() -> None:
    state = {
        "patch_embed.proj.weight": torch.ones(1),
        "pos_embed": torch.ones(1),
        "head.weight": torch.ones(1),
    }
    for prefix in ("", "encoder.", "module."):
        assert recognise(under(prefix, state)) == Layout("timm", prefix)
    assert to_open_clip(state).keys() == {"patch_embed.proj.weight", "pos_embed"}


def test_a_head_and_nothing_known() -> None:
    assert recognise({"weight": torch.ones(1), "bias": torch.ones(1)}).kind == "head"
    assert recognise({"a.b": torch.ones(1)}).kind == "unknown"
    with pytest.raises(StaError, match="a classification head, not an image encoder"):
        to_open_clip({"weight": torch.ones(1)})
    with pytest.raises(StaError, match="an unknown layout, not an image encoder"):
        to_open_clip({"a.b": torch.ones(1)})


def test_two_encoders_are_refused() -> None:
    with pytest.raises(StaError, match=r"more than once, under 'student\.', 'teacher\.'"):
        recognise({**under("student.", VISUAL), **under("teacher.", VISUAL)})


def test_hugging_faces_siglip_is_refused() -> None:
    with pytest.raises(StaError, match="no class token"):
        recognise({"vision_model.embeddings.patch_embedding.weight": torch.ones(1)})
