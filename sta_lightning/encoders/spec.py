"""What an encoder expects of its input, told by its name alone; nothing is built and no weights are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sta_lightning.errors import StaError, listed

MINIATURE = "miniature"
TIMM_PREFIX = "timm/"
MINIATURE_CONFIG = Path(__file__).with_name("miniature.json")

_INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class EncoderSpec:
    """The input that an encoder was trained on, and how its weights are named in files.

    Attributes:
        name: ``miniature``, an open_clip architecture such as ``ViT-B-16``, or ``timm/`` and a timm model's
            name.
        image_size: Side of the square input, in pixels.
        mean: Mean per channel (red, green, blue) of pixels scaled to 0..1.
        std: Standard deviation per channel.
        interpolation: ``bicubic`` or ``bilinear``, for resizing images.
        key_prefix: What precedes the encoder's tensor names in files: ``visual.`` for CLIP models, nothing
            for timm.
    """

    name: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    key_prefix: str


def encoder_spec(name: str, image_size: int | None = None, pretrained: str | None = None) -> EncoderSpec:
    """Return what the encoder ``name`` expects of its input.

    Args:
        name: ``miniature``, an open_clip architecture, or ``timm/`` and a timm model's name.
        image_size: Side of the input in pixels; by default the architecture's own.
        pretrained: An open_clip tag (some of open_clip's weights want another mean and deviation than CLIP's
            own). A file, ``random`` or nothing leaves the defaults of the architecture.

    Raises:
        StaError: if there is no encoder of that name, or its images are resized in a way that is not
        supported.
    """
    if image_size is not None and image_size < 1:
        raise StaError(f"An image size of {image_size} pixels was asked for: give a positive number.")
    if name == MINIATURE:
        own_size = int(json.loads(MINIATURE_CONFIG.read_text())["vision_cfg"]["image_size"])
        half = (0.5, 0.5, 0.5)
        return EncoderSpec(name, image_size or own_size, half, half, "bicubic", "visual.")
    if name.startswith(TIMM_PREFIX):
        return _timm_spec(name, image_size)
    return _open_clip_spec(name, image_size, pretrained)


def _timm_spec(name: str, image_size: int | None) -> EncoderSpec:
    import timm

    model = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(model):
        near = timm.list_models(f"*{model.split('_')[0]}*")
        raise StaError(
            f"The encoder '{name}' was asked for, but timm has no model '{model}'. It has {listed(near)}."
        )
    config = timm.get_pretrained_cfg(model)
    if config is None:
        raise StaError(
            f"timm does not say what input its model '{model}' wants: choose one that has a pretrained "
            "config."
        )
    size = image_size or int(config.input_size[-1])
    return _checked(name, size, config.mean, config.std, config.interpolation, "")


def _open_clip_spec(name: str, image_size: int | None, pretrained: str | None) -> EncoderSpec:
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        raise StaError(
            f"The encoder '{name}' was asked for. Known are '{MINIATURE}', a timm model as 'timm/<name>' and "
            f"the models of open_clip: {listed(open_clip.list_models(), limit=12)}."
        )
    preprocess: dict[str, Any] = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    preprocess.update(open_clip.get_pretrained_cfg(name, pretrained) or {} if pretrained else {})
    if preprocess["resize_mode"] != "shortest":
        raise StaError(
            f"The weights '{pretrained}' of '{name}' want images resized by the rule "
            f"'{preprocess['resize_mode']}'; only 'shortest' (short side, then a centre crop) is supported. "
            "Choose other weights."
        )
    size = config["vision_cfg"]["image_size"]
    if image_size is None and not isinstance(size, int):
        raise StaError(
            f"The encoder '{name}' wants images of {size} pixels; only square images are supported."
        )
    return _checked(
        name,
        image_size or size,
        preprocess["mean"],
        preprocess["std"],
        preprocess["interpolation"],
        "visual.",
    )


def _checked(name: str, size: int, mean: Any, std: Any, interpolation: str, prefix: str) -> EncoderSpec:
    if interpolation not in _INTERPOLATIONS:
        interpolation = "bicubic"
    red, green, blue = (float(value) for value in mean)
    deviations = tuple(float(value) for value in std)
    return EncoderSpec(
        name, size, (red, green, blue), (deviations[0], deviations[1], deviations[2]), interpolation, prefix
    )
