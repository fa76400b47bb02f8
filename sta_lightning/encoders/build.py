"""Build encoders by name, with weights from the package, a local file or open_clip's own download."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from sta_lightning.encoders.loading import RANDOM, load_strictly, read_state, untold, untouched_random_state
from sta_lightning.encoders.spec import MINIATURE, MINIATURE_CONFIG, TIMM_PREFIX, encoder_spec
from sta_lightning.errors import StaError, listed

MINIATURE_WEIGHTS = Path(__file__).with_name("miniature.safetensors")
_OPEN_CLIP_MINIATURE = "sta-miniature"


def has_text_tower(name: str) -> bool:
    """Tell whether the encoder comes with a text tower, and so has zero-shot heads."""
    return not name.startswith(TIMM_PREFIX)


def build_encoder(name: str, pretrained: str | None = None, image_size: int | None = None) -> nn.Module:
    """Build an image encoder: open_clip's ``visual`` tower, or a timm model without its classifier.

    Its ``forward`` takes normalised images ``[B, 3, S, S]`` and returns features ``[B, D]``. Weights are
    float32.

    Args:
        name: ``miniature``, an open_clip architecture such as ``ViT-B-16``, or ``timm/`` and a timm model's
            name.
        pretrained: A weights file (a whole CLIP, or an image encoder alone); for open_clip's architectures
            also one of its tags (downloaded on first use); ``random`` for random weights. Nothing means the
            weights that the package ships for ``miniature``; the others need an answer. A file of OpenAI's
            weights wants the architecture's name with ``-quickgelu``; the tag ``openai`` needs no such care.
        image_size: Side of the input in pixels; position embeddings are resampled. By default the
            architecture's own.

    Raises:
        StaError: if the encoder or its weights cannot be found, or do not fit.
    """
    if name.startswith(TIMM_PREFIX):
        from sta_lightning.encoders.timm_models import build_timm

        return build_timm(name, pretrained, image_size)
    path = weights_file(name, pretrained)
    if path is not None:
        state = read_state(path)
        if not _is_whole_clip(state):
            return _image_encoder(name, path, state, image_size)
    return cast(nn.Module, build_clip(name, pretrained, image_size).visual)


def build_clip(name: str, pretrained: str | None = None, image_size: int | None = None) -> Any:
    """Build a whole CLIP, an ``open_clip.CLIP``: ``visual``, ``encode_text``, ``logit_scale``.

    Args:
        name: ``miniature`` or an open_clip architecture.
        pretrained: As for ``build_encoder``; a file must hold the text tower too.
        image_size: As for ``build_encoder``.

    Raises:
        StaError: if the model or its weights cannot be found, do not fit, or have no text tower.
    """
    if not has_text_tower(name):
        raise StaError(f"'{name}' has no text tower: its head is made of class prototypes, not of prompts.")
    path = weights_file(name, pretrained)
    if path is None:
        return _create(name, pretrained, image_size)
    state = read_state(path)
    if not _is_whole_clip(state):
        raise StaError(
            f"A whole CLIP was asked for, to make heads from its text tower, but {path} holds an image "
            "encoder alone. Give the file of the pretrained CLIP, or the head of the task."
        )
    with untouched_random_state():
        clip = _create(name, RANDOM, image_size)
    _fill_clip(clip, state, path)
    return clip


def tokenize(name: str, texts: Sequence[str]) -> Tensor:
    """Turn texts into the tokens ``[B, context_length]`` (int64) that the CLIP ``name`` reads.

    Raises:
        StaError: if ``name`` has no text tower or its tokenizer cannot be had.
    """
    if not has_text_tower(name):
        raise StaError(f"'{name}' has no text tower, hence no tokens.")
    return cast(Tensor, _tokenizer(name)(list(texts)))


def _open_clip_name(name: str) -> str:
    import open_clip

    if name != MINIATURE:
        return name
    if open_clip.get_model_config(_OPEN_CLIP_MINIATURE) is None:
        # open_clip names a config after its file; the file of ours is registered under a name that cannot
        # clash.
        _register_miniature()
    return _OPEN_CLIP_MINIATURE


def _register_miniature() -> None:
    import tempfile

    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{_OPEN_CLIP_MINIATURE}.json"
        path.write_text(MINIATURE_CONFIG.read_text())
        open_clip.add_model_config(path)


@functools.cache
def _tokenizer(name: str) -> Any:
    import open_clip

    encoder_spec(name)
    try:
        return open_clip.get_tokenizer(_open_clip_name(name))
    except Exception as error:
        raise StaError(f"The tokenizer of '{name}' cannot be had: {error}") from error


def weights_file(name: str, pretrained: str | None) -> Path | None:
    """Tell which file the weights of a CLIP come from; none for a tag of open_clip or random weights.

    Raises:
        StaError: if there is no such file or tag.
    """
    if pretrained == RANDOM:
        return None
    if pretrained is None:
        if name != MINIATURE:
            raise StaError(
                f"The encoder '{name}' needs weights: give pretrained=<file> or a tag of open_clip. "
                f"{_tags(name)}"
            )
        if not MINIATURE_WEIGHTS.is_file():
            raise StaError(
                f"The weights of the embedded encoder are missing: {MINIATURE_WEIGHTS} does not exist. Make "
                "them with `sta fit --config configs/pretrain/miniature.yaml`, or install the package again."
            )
        return MINIATURE_WEIGHTS
    if Path(pretrained).is_file():
        return Path(pretrained)
    if name == MINIATURE or not _is_tag(name, pretrained):
        raise StaError(
            f"The weights '{pretrained}' of '{name}' were asked for, but there is no such file. {_tags(name)}"
        )
    return None


def _is_tag(name: str, pretrained: str) -> bool:
    import open_clip

    return bool(open_clip.get_pretrained_cfg(name, pretrained))


def _tags(name: str) -> str:
    if name == MINIATURE:
        return "Leave pretrained out to use the weights that the package ships."
    import open_clip

    return f"open_clip's tags for it: {listed(open_clip.list_pretrained_tags_by_model(name), limit=12)}."


def _create(name: str, pretrained: str | None, image_size: int | None) -> Any:
    """Let open_clip build a model, with random weights or those of one of its tags."""
    import open_clip

    size = encoder_spec(name, image_size).image_size
    if pretrained == RANDOM:
        with untold("initialized randomly"):
            model = open_clip.create_model(
                _open_clip_name(name), force_image_size=size, pretrained_text=False
            )
        return model.float()
    # Weights trained with the sigmoid approximation of GELU give wrong features without it.
    quick_gelu = bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False))
    try:
        model = open_clip.create_model(
            name, pretrained=pretrained, force_image_size=size, force_quick_gelu=quick_gelu
        )
    except Exception as error:  # whatever a download can fail with
        raise StaError(
            f"open_clip could not give '{name}' the weights '{pretrained}': {error}. Without a network, give "
            "the path of their file."
        ) from error
    return model.float()


def _is_whole_clip(state: dict[str, Tensor]) -> bool:
    towers = {name.split(".")[0] for name in state}
    return "visual" in towers and bool(towers & {"transformer", "text"})


def _fill_clip(clip: Any, state: dict[str, Tensor], path: Path) -> None:
    from open_clip.model import resize_pos_embed

    resize_pos_embed(state, clip)
    load_strictly(clip, state, path)


def _image_encoder(name: str, path: Path, state: dict[str, Tensor], image_size: int | None) -> nn.Module:
    from open_clip.model import resize_pos_embed

    from sta_lightning.weights import encoder_weights

    with untouched_random_state():
        clip = _create(name, RANDOM, image_size)
    found = encoder_weights(state, names=clip.visual.state_dict().keys())
    prefixed = {f"visual.{key}": tensor for key, tensor in found.items()}
    resize_pos_embed(prefixed, clip)
    load_strictly(
        clip.visual, {key.removeprefix("visual."): tensor for key, tensor in prefixed.items()}, path
    )
    return cast(nn.Module, clip.visual)
