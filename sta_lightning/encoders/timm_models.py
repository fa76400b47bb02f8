"""Vision transformers of timm, with weights from a local file; nothing is ever downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sta_lightning.encoders.architectures import RANDOM, TIMM_PREFIX
from sta_lightning.encoders.loading import load_strictly, read_state
from sta_lightning.encoders.spec import encoder_spec
from sta_lightning.errors import StaError
from sta_lightning.weights import encoder_weights


def build_timm(name: str, pretrained: str | None, image_size: int | None = None) -> nn.Module:
    """Build a timm model without its classifier; see ``build_encoder``."""
    size = encoder_spec(name, image_size).image_size
    if pretrained == RANDOM:
        return _create(name, size)
    path = _file(name, pretrained)
    with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
        model = _create(name, size)
    found = dict(encoder_weights(read_state(path), names=model.state_dict().keys()))
    _resample_positions(model, found)
    load_strictly(model, found, path)
    return model


def own_head(name: str, pretrained: str | None) -> tuple[Tensor, Tensor | None]:
    """Read the classifier that a timm model came with.

    Args:
        name: ``timm/`` and a model's name.
        pretrained: The weights file.

    Returns:
        Weight ``[C, D]`` and bias ``[C]`` or ``None``, float32; features are not normalised before
        they are applied.

    Raises:
        StaError: if the encoder is not timm's or the file has no classifier.
    """
    if not name.startswith(TIMM_PREFIX):
        raise StaError(f"Only encoders of timm have a head of their own; '{name}' has none.")
    import timm

    encoder_spec(name)
    path = _file(name, pretrained)
    classifier: Any = timm.get_pretrained_cfg(name.removeprefix(TIMM_PREFIX)).classifier
    if not isinstance(classifier, str):
        raise StaError(
            f"The classifier of '{name}' has the parts {classifier!r}; only models with a single one are supported."
        )
    state = read_state(path)
    if f"{classifier}.weight" not in state:
        raise StaError(f"The own head of '{name}' was asked for, but {path} holds no '{classifier}.weight'.")
    return state[f"{classifier}.weight"], state.get(f"{classifier}.bias")


def _file(name: str, pretrained: str | None) -> Path:
    if pretrained is None:
        raise StaError(
            f"The encoder '{name}' needs weights: give pretrained=<safetensors file with timm's tensor names>."
        )
    if not Path(pretrained).is_file():
        raise StaError(f"The weights '{pretrained}' of '{name}' were asked for, but there is no such file.")
    return Path(pretrained)


def _create(name: str, size: int) -> nn.Module:
    import timm

    # The size is handed over only where it matters: not every architecture takes it.
    other_size = {} if size == encoder_spec(name).image_size else {"img_size": size}
    model = name.removeprefix(TIMM_PREFIX)
    try:
        return cast(nn.Module, timm.create_model(model, pretrained=False, num_classes=0, **other_size))
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise StaError(f"timm could not build '{name}' for images of {size} pixels: {error}") from error


def _resample_positions(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Resample absolute position embeddings to the model's grid, as timm does."""
    own, found = model.state_dict().get("pos_embed"), state.get("pos_embed")
    if own is None or found is None or own.shape == found.shape:
        return
    if found.ndim != 3 or own.shape[-1] != found.shape[-1]:
        return  # which fits no grid; the strict loading says so
    from timm.layers import resample_abs_pos_embed

    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is None:
        raise StaError("The position embedding 'pos_embed' cannot be resampled: the model has no patch grid.")
    beside = not getattr(model, "no_embed_class", False)
    prefix = int(cast(Any, getattr(model, "num_prefix_tokens", 0))) if beside else 0
    with torch.no_grad():
        state["pos_embed"] = resample_abs_pos_embed(found, new_size=list(grid), num_prefix_tokens=prefix)
