"""The image encoder inside a larger checkpoint."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sta_lightning.errors import StaError
from sta_lightning.weights import encoder_weights, save_weights
from sta_lightning.weights.encoder import unwrapped

ENCODER = {
    "class_embedding": torch.ones(4),
    "positional_embedding": torch.ones(5, 4),
    "conv1.weight": torch.ones(4, 3, 2, 2),
    "transformer.resblocks.0.mlp.c_fc.weight": torch.ones(8, 4),
    "transformer.resblocks.0.mlp.c_fc.bias": torch.ones(8),
    "proj": torch.ones(4, 2),
}
TEXT = {
    "positional_embedding": torch.zeros(7, 6),
    "text_projection": torch.zeros(6, 2),
    "logit_scale": torch.zeros(()),
    "token_embedding.weight": torch.zeros(9, 6),
    "transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(12, 6),
    "transformer.resblocks.0.mlp.c_fc.bias": torch.zeros(12),
    "ln_final.weight": torch.zeros(6),
}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.filterwarnings("ignore:.*out of a wrapped model")
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "visual.",
        "encoder.",
        "module.",
        "module.visual.",
        "model.visual.",
        "model.",
        "encoder._orig_mod.",
        "image_encoder.model.visual.",
        "clip_model.visual.",
        "0.",
        "student.stages.0.tower.",
    ],
)
def test_the_usual_places_are_found(prefix: str) -> None:
    beside = {"head.weight": torch.zeros(3, 2), "head.bias": torch.zeros(3), "logit_scale": torch.zeros(())}
    got = encoder_weights({**under(prefix, ENCODER), **beside}, names=ENCODER)
    assert list(got) == list(ENCODER)
    assert all(bool((value == 1).all()) for value in got.values())


@pytest.mark.filterwarnings("ignore:.*out of a wrapped model")
@pytest.mark.parametrize("wrapper", ["", "module.", "model."])
def test_a_whole_clip_gives_its_image_tower_not_its_text_tower(wrapper: str) -> None:
    state = under(wrapper, {**TEXT, **under("visual.", ENCODER)})
    got = encoder_weights(state, names=list(ENCODER))
    assert got["positional_embedding"].shape == (5, 4)
    assert all(bool((value == 1).all()) for value in got.values())


def test_a_text_tower_of_its_own_module_is_left() -> None:
    state = {**under("visual.", ENCODER), **under("text.", TEXT)}
    assert encoder_weights(state, names=ENCODER).keys() == ENCODER.keys()


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_weights(path, {**TEXT, **under("visual.", ENCODER)})
    assert torch.equal(encoder_weights(path, names=ENCODER)["proj"], ENCODER["proj"])
    torch.save(
        {"state_dict": {**under("encoder.", ENCODER), "head.weight": torch.ones(2)}}, tmp_path / "a.ckpt"
    )
    assert encoder_weights(tmp_path / "a.ckpt", names=ENCODER).keys() == ENCODER.keys()
    with pytest.raises(StaError, match=r"clip\.safetensors' does not hold this encoder"):
        encoder_weights(path, names={**ENCODER, "ln_pre.weight": torch.ones(4)})


def test_missing_tensors_are_named() -> None:
    state = under("visual.", {name: value for name, value in ENCODER.items() if name != "conv1.weight"})
    with pytest.raises(StaError, match=r"under 'visual\.': missing 1 of 6 tensors: 'conv1\.weight'"):
        encoder_weights(state, names=ENCODER)
    with pytest.raises(StaError, match=r"missing 6 of 6 tensors: 'class_embedding'"):
        encoder_weights({"other": torch.ones(1)}, names=ENCODER)


def test_an_encoder_with_more_blocks_is_refused() -> None:
    state = under("visual.", {**ENCODER, "transformer.resblocks.1.mlp.c_fc.bias": torch.ones(8)})
    with pytest.raises(StaError, match=r"unknown 1: 'transformer\.resblocks\.1\.mlp\.c_fc\.bias'"):
        encoder_weights(state, names=ENCODER)


def test_another_shape_is_refused_when_shapes_are_given() -> None:
    state = {**ENCODER, "positional_embedding": torch.ones(10, 4)}
    with pytest.raises(StaError, match=r"'positional_embedding \(10, 4\) instead of \(5, 4\)'"):
        encoder_weights(state, names=ENCODER)
    assert encoder_weights(state, names=list(ENCODER))["positional_embedding"].shape == (10, 4)


def test_two_places_are_refused_and_prefix_decides() -> None:
    state = {**under("encoder.", ENCODER), **under("model.encoder.", {k: v + 1 for k, v in ENCODER.items()})}
    with pytest.raises(StaError, match=r"more than once, under 'encoder\.', 'model\.encoder\.'"):
        encoder_weights(state, names=ENCODER)
    assert float(encoder_weights(state, names=ENCODER, prefix="model.encoder.")["proj"][0, 0]) == 2.0


def test_of_two_places_a_usual_one_is_preferred() -> None:
    other = {name: value + 1 for name, value in ENCODER.items()}
    state = {**under("ema_model.", other), **under("model.visual.", ENCODER)}
    assert float(encoder_weights(state, names=ENCODER)["proj"][0, 0]) == 1
    state = {**under("teacher.", other), **under("student.", ENCODER)}
    with pytest.raises(StaError, match=r"more than once, under 'teacher\.', 'student\.'\. Save"):
        encoder_weights(state, names=ENCODER)
    assert float(encoder_weights(state, names=ENCODER, prefix="teacher.")["proj"][0, 0]) == 2


WRAPPED = [
    "visual.transformer._orig_mod.resblocks.0._orig_mod.mlp.c_fc.",
    "_forward_module.module.visual.transformer.resblocks.0._checkpoint_wrapped_module.mlp._orig_mod.c_fc.",
    "visual._fsdp_wrapped_module.transformer.resblocks.0._fsdp_wrapped_module.mlp.module.c_fc.",
]


@pytest.mark.parametrize("linear", WRAPPED)
@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth.tar"])
def test_wrappers_inside_names_are_left_out_and_told(tmp_path: Path, linear: str, ending: str) -> None:
    plain = "transformer.resblocks.0.mlp.c_fc."
    place = linear[: linear.index("transformer")]
    state = {
        (linear if name.startswith(plain) else place) + name.removeprefix(plain): value
        for name, value in ENCODER.items()
    }
    path = tmp_path / f"wrapped.{ending}"
    save_weights(path, state) if ending == "safetensors" else torch.save({"state_dict": state}, path)
    with pytest.warns(
        UserWarning, match=r"wrapped\..*out of a wrapped model: '_.* was left out of the names"
    ):
        got = encoder_weights(path, names=ENCODER)
    assert got.keys() == ENCODER.keys()
    assert all(torch.equal(got[name], ENCODER[name]) for name in ENCODER)
    with pytest.warns(UserWarning, match="the state dict was saved out of a wrapped model"):
        assert encoder_weights(state, names=ENCODER).keys() == ENCODER.keys()


def test_names_that_would_collide_stay() -> None:
    state = {"module.w": torch.ones(1), "w": torch.ones(2)}
    assert unwrapped(state, "it") is state


def test_no_names_are_refused() -> None:
    with pytest.raises(StaError, match="names is empty"):
        encoder_weights(ENCODER, names=[])
