from __future__ import annotations

import pytest

from sta_lightning.encoders import encoder_spec
from sta_lightning.errors import StaError


def test_embedded_encoder() -> None:
    spec = encoder_spec("miniature")
    assert (spec.image_size, spec.mean, spec.std) == (32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert spec.key_prefix == "visual."


def test_open_clip_encoder() -> None:
    spec = encoder_spec("ViT-B-16")
    assert (spec.image_size, spec.interpolation, spec.key_prefix) == (224, "bicubic", "visual.")
    assert spec.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert encoder_spec("ViT-L-14-336").image_size == 336
    assert encoder_spec("ViT-B-16", 96).image_size == 96


def test_a_tag_may_want_another_mean() -> None:
    assert encoder_spec("ViT-L-14", pretrained="laion2b_s32b_b82k").mean == (0.5, 0.5, 0.5)
    assert encoder_spec("ViT-L-14", pretrained="openai").mean == encoder_spec("ViT-L-14").mean
    assert encoder_spec("ViT-L-14", pretrained="random") == encoder_spec("ViT-L-14")


def test_timm_encoder() -> None:
    spec = encoder_spec("timm/deit_tiny_patch16_224")
    assert (spec.image_size, spec.key_prefix, spec.interpolation) == (224, "", "bicubic")
    assert spec.mean == (0.485, 0.456, 0.406)
    assert encoder_spec("timm/deit_tiny_patch16_224", 128).image_size == 128


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("ViT-Z-99",), r"'ViT-Z-99'.*'miniature'.*timm/<name>"),
        (("timm/deit_huge",), r"no model 'deit_huge'.*'deit3_"),
        (("miniature", 0), "image size of 0"),
        (("ViT-B-16-SigLIP", None, "webli"), "squash"),
    ],
)
def test_what_cannot_be_is_told(arguments: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(StaError, match=complaint):
        encoder_spec(*arguments)  # type: ignore[arg-type]
