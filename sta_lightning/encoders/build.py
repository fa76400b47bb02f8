"""Build encoders by name, with weights from the package, a local file, one of open_clip's tags or a repository of the hub."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from sta_lightning.encoders.architectures import TIMM_PREFIX, has_text_tower, registered_name
from sta_lightning.encoders.loading import RANDOM, load_strictly, read_state, untold, untouched_random_state
from sta_lightning.encoders.sources import MINIATURE_WEIGHTS, Weights, find_weights, tag_config, weights_file
from sta_lightning.encoders.spec import encoder_spec
from sta_lightning.errors import StaError

__all__ = [
    "MINIATURE_WEIGHTS",
    "build_clip",
    "build_encoder",
    "empty_encoder",
    "has_text_tower",
    "tokenize",
    "weights_file",
]


def build_encoder(name: str, pretrained: str | None = None, image_size: int | None = None) -> nn.Module:
    """Build an image encoder: open_clip's ``visual`` tower, or a timm model without its classifier.

    Its ``forward`` takes normalised images ``[B, 3, S, S]`` and returns features ``[B, D]``.
    Weights are float32.

    Args:
        name: ``miniature``, an open_clip architecture such as ``ViT-B-16``, ``hf-hub:org/name``
            (and ``@revision``) for a repository of open_clip's layout, or ``timm/`` and a timm
            model's name.
        pretrained: A weights file (a whole CLIP, or an image encoder alone); for open_clip's
            architectures also one of its tags (fetched on first use); ``random`` for random
            weights. Nothing means the weights that the package ships for ``miniature``, and a
            repository's own; the others need an answer. A file of OpenAI's weights wants the
            architecture's name with ``-quickgelu``; the tag ``openai`` needs no such care.
        image_size: Side of the input in pixels; position embeddings are resampled. By default the
            architecture's own.

    Raises:
        StaError: if the encoder or its weights cannot be found, or do not fit.
    """
    if name.startswith(TIMM_PREFIX):
        from sta_lightning.encoders.timm_models import build_timm

        return build_timm(name, pretrained, image_size)
    weights = find_weights(name, pretrained)
    if weights.file is not None and not weights.library:
        state = read_state(weights.file)
        if not _is_whole_clip(state):
            return _image_encoder(name, weights.file, state, image_size)
        return cast(nn.Module, _whole_clip(name, weights.file, state, image_size).visual)
    return cast(nn.Module, _create(name, weights, image_size).visual)


def empty_encoder(name: str, pretrained: str | None = None, image_size: int | None = None) -> nn.Module:
    """Build the architecture that ``build_encoder`` would, without its weights and without a draw of random numbers.

    Args:
        name: As for ``build_encoder``.
        pretrained: As for ``build_encoder``; only a tag matters, whose weights may want QuickGELU.
            No file is read.
        image_size: As for ``build_encoder``.

    Raises:
        StaError: if there is no such encoder.
    """
    with untouched_random_state():
        if name.startswith(TIMM_PREFIX):
            from sta_lightning.encoders.timm_models import build_timm

            return build_timm(name, RANDOM, image_size)
        tag = None if pretrained is None else tag_config(name, pretrained)
        weights = Weights(None, quick_gelu=bool((tag or {}).get("quick_gelu", False)))
        return cast(nn.Module, _create(name, weights, image_size).visual)


def build_clip(name: str, pretrained: str | None = None, image_size: int | None = None) -> Any:
    """Build a whole CLIP, an ``open_clip.CLIP``: ``visual``, ``encode_text``, ``logit_scale``.

    Args:
        name: ``miniature``, an open_clip architecture, or ``hf-hub:org/name``.
        pretrained: As for ``build_encoder``; a file must hold the text tower too.
        image_size: As for ``build_encoder``.

    Raises:
        StaError: if the model or its weights cannot be found, do not fit, or have no text tower.
    """
    if not has_text_tower(name):
        raise StaError(f"'{name}' has no text tower: its head is made of class prototypes, not of prompts.")
    weights = find_weights(name, pretrained)
    if weights.file is None or weights.library:
        return _create(name, weights, image_size)
    state = read_state(weights.file)
    if not _is_whole_clip(state):
        raise StaError(
            f"A whole CLIP was asked for, to make heads from its text tower, but {weights.file} holds an image "
            "encoder alone. Give the file of the pretrained CLIP, or the head of the task."
        )
    return _whole_clip(name, weights.file, state, image_size)


def tokenize(name: str, texts: Sequence[str]) -> Tensor:
    """Turn texts into the tokens ``[B, context_length]`` (int64) that the CLIP ``name`` reads.

    Raises:
        StaError: if ``name`` has no text tower or its tokenizer cannot be had.
    """
    if not has_text_tower(name):
        raise StaError(f"'{name}' has no text tower, hence no tokens.")
    return cast(Tensor, _tokenizer(name)(list(texts)))


@functools.cache
def _tokenizer(name: str) -> Any:
    import open_clip

    known = registered_name(name)
    if open_clip.get_model_config(known) is None:
        encoder_spec(name)  # which says what there is
    try:
        return open_clip.get_tokenizer(known)
    except Exception as error:
        raise StaError(f"The tokenizer of '{name}' cannot be had: {error}") from error


def _create(name: str, weights: Weights, image_size: int | None) -> Any:
    """Let open_clip build a model, with random weights or those of a file that it reads itself."""
    import open_clip

    size = encoder_spec(name, image_size).image_size
    with untold("initialized randomly"):
        try:
            model = open_clip.create_model(
                registered_name(name),
                pretrained=None if weights.file is None else str(weights.file.absolute()),
                force_image_size=size,
                force_quick_gelu=weights.quick_gelu,
                pretrained_text=False,
            )
        except Exception as error:  # the library has no exception of its own
            source = "random weights" if weights.file is None else f"the weights {weights.file}"
            raise StaError(f"open_clip could not give '{name}' {source}: {error}") from error
    return model.float()


def _whole_clip(name: str, path: Path, state: dict[str, Tensor], image_size: int | None) -> Any:
    from open_clip.model import resize_pos_embed

    with untouched_random_state():
        clip = _create(name, Weights(None), image_size)
    resize_pos_embed(state, clip)
    load_strictly(clip, state, path)
    return clip


def _is_whole_clip(state: dict[str, Tensor]) -> bool:
    towers = {name.split(".")[0] for name in state}
    return "visual" in towers and bool(towers & {"transformer", "text"})


def _image_encoder(name: str, path: Path, state: dict[str, Tensor], image_size: int | None) -> nn.Module:
    from open_clip.model import resize_pos_embed

    from sta_lightning.weights import encoder_weights

    with untouched_random_state():
        clip = _create(name, Weights(None), image_size)
    found = encoder_weights(state, names=clip.visual.state_dict().keys())
    prefixed = {f"visual.{key}": tensor for key, tensor in found.items()}
    resize_pos_embed(prefixed, clip)
    load_strictly(
        clip.visual, {key.removeprefix("visual."): tensor for key, tensor in prefixed.items()}, path
    )
    return cast(nn.Module, clip.visual)
