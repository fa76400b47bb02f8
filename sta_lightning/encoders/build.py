"""Build encoders by name, with weights of the package, a file, open_clip's tags or the hub."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sta_lightning.encoders.architectures import RANDOM, TIMM_PREFIX, has_text_tower, registered_name
from sta_lightning.encoders.loading import load_strictly, read_state, unlogged
from sta_lightning.encoders.sources import Weights, find_weights, tag_config
from sta_lightning.encoders.spec import encoder_spec
from sta_lightning.encoders.timm_models import build_timm
from sta_lightning.errors import StaError
from sta_lightning.weights import encoder_weights


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
            weights. ``None`` means the weights that the package ships for ``miniature``, and a
            repository's own; the others need an answer. A file of OpenAI's weights wants the
            architecture's name with ``-quickgelu``; the tag ``openai`` needs no such care.
        image_size: Side of the input in pixels; position embeddings are resampled. By default the
            architecture's own.

    Raises:
        StaError: if the encoder or its weights cannot be found, or do not fit.
    """
    if name.startswith(TIMM_PREFIX):
        return build_timm(name, pretrained, image_size)
    return cast(nn.Module, _clip(name, pretrained, image_size).visual)


def empty_encoder(name: str, pretrained: str | None = None, image_size: int | None = None) -> nn.Module:
    """Build ``build_encoder``'s architecture without weights or a draw of random numbers.

    Arguments are those of ``build_encoder``. Of ``pretrained`` only a tag matters, whose weights
    may want QuickGELU; no file is read.

    Raises:
        StaError: if there is no such encoder.
    """
    with torch.random.fork_rng(devices=[]):
        if name.startswith(TIMM_PREFIX):
            return build_timm(name, RANDOM, image_size)
        tag = None if pretrained is None else tag_config(name, pretrained)
        weights = Weights(None, quick_gelu=bool((tag or {}).get("quick_gelu", False)))
        return cast(nn.Module, _create(name, weights, image_size).visual)


def build_clip(name: str, pretrained: str | None = None, image_size: int | None = None) -> Any:
    """Build a whole CLIP, an ``open_clip.CLIP``: ``visual``, ``encode_text``, ``logit_scale``.

    Arguments are those of ``build_encoder``; a file must hold the text tower too.

    Raises:
        StaError: if the model or its weights cannot be found, do not fit, or have no text tower.
    """
    if not has_text_tower(name):
        raise StaError(f"'{name}' has no text tower: its head is made of class prototypes, not of prompts.")
    return _clip(name, pretrained, image_size, with_text=True)


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
    with unlogged("initialized randomly"):
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


def _clip(name: str, pretrained: str | None, image_size: int | None, *, with_text: bool = False) -> Any:
    """A CLIP with its weights, which a file may hold of the image encoder alone."""
    from open_clip.model import resize_pos_embed

    weights = find_weights(name, pretrained)
    path = weights.file
    if path is None or weights.library:
        return _create(name, weights, image_size)
    state = read_state(path)
    towers = {key.split(".")[0] for key in state}
    whole = "visual" in towers and bool(towers & {"transformer", "text"})
    if with_text and not whole:
        raise StaError(
            f"A whole CLIP was asked for, to make heads from its text tower, but {path} holds an image "
            "encoder alone. Give the file of the pretrained CLIP, or the head of the task."
        )
    with torch.random.fork_rng(devices=[]):
        clip = _create(name, Weights(None), image_size)
    if not whole:
        found = encoder_weights(state, names=clip.visual.state_dict().keys())
        state = {**clip.state_dict(), **{f"visual.{key}": tensor for key, tensor in found.items()}}
    resize_pos_embed(state, clip)
    load_strictly(clip, state, path)
    return clip
