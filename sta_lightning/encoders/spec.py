"""What an encoder expects of its input, by its name alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from sta_lightning.encoders.architectures import MINIATURE, TIMM_PREFIX, is_hub_name, model_config
from sta_lightning.encoders.hub import Repository
from sta_lightning.encoders.sources import tag_config
from sta_lightning.errors import StaError, listed

_INTERPOLATIONS = ("bilinear", "bicubic")
_Channels = tuple[float, float, float]
_OPEN_CLIP_SIZE = 224  # where a description does not say it


@dataclass(frozen=True)
class EncoderSpec:
    """The input that an encoder was trained on, and how its weights are named in files.

    Attributes:
        name: As for ``build_encoder``.
        image_size: Side of the square input, in pixels.
        mean: Mean per channel (red, green, blue) of pixels scaled to 0..1.
        std: Standard deviation per channel.
        interpolation: ``bicubic`` or ``bilinear``, for resizing images.
        key_prefix: What precedes the encoder's tensor names in files: ``visual.`` for CLIP models,
            empty for timm.
    """

    name: str
    image_size: int
    mean: _Channels
    std: _Channels
    interpolation: str
    key_prefix: str


def encoder_spec(name: str, image_size: int | None = None, pretrained: str | None = None) -> EncoderSpec:
    """Return what the encoder ``name`` expects of its input.

    Args:
        name: As for ``build_encoder``.
        image_size: Side of the input in pixels; by default the architecture's own.
        pretrained: An open_clip tag (some of open_clip's weights want another mean and deviation
            than CLIP's own). A file, ``random`` or ``None`` leaves the architecture's defaults,
            or what the repository says.

    Raises:
        StaError: if there is no encoder of that name, or its images are resized in a way that is
        not supported.
    """
    if image_size is not None and image_size < 1:
        raise StaError(f"An image size of {image_size} pixels was asked for: give a positive number.")
    if name == MINIATURE:
        own_size = int(model_config(name)["vision_cfg"]["image_size"])
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
            f"timm does not say what input its model '{model}' wants: choose one that has a pretrained config."
        )
    size = image_size or int(config.input_size[-1])
    return _spec(name, size, vars(config), "")


def _open_clip_spec(name: str, image_size: int | None, pretrained: str | None) -> EncoderSpec:
    config = model_config(name)
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    if is_hub_name(name):
        said = Repository.parse(name).config().get("preprocess_cfg") or {}
    else:
        said = (tag_config(name, pretrained) if pretrained else None) or {}
    preprocess = merge_preprocess_dict(PreprocessCfg(), said)
    if preprocess["resize_mode"] != "shortest":
        which = f"'{pretrained}' " if pretrained else ""
        raise StaError(
            f"The weights {which}of '{name}' want images resized by the rule '{preprocess['resize_mode']}'; only 'shortest' "
            "(short side, then a centre crop) is supported. Choose other weights."
        )
    size = config["vision_cfg"].get("image_size", _OPEN_CLIP_SIZE)
    if image_size is None and not isinstance(size, int):
        raise StaError(
            f"The encoder '{name}' wants images of {size} pixels; only square images are supported."
        )
    return _spec(name, image_size or size, preprocess, "visual.")


def _spec(name: str, size: int, said: Mapping[str, Any], prefix: str) -> EncoderSpec:
    mean, std = (cast(_Channels, tuple(map(float, said[key]))) for key in ("mean", "std"))
    known = said["interpolation"] if said["interpolation"] in _INTERPOLATIONS else "bicubic"
    return EncoderSpec(name, size, mean, std, known, prefix)
