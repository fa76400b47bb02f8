"""The image encoder of a checkpoint and the CLIP around it, in the names of either layout."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import replace

from sta_lightning.arithmetic.sources import TensorSource
from sta_lightning.errors import StaError
from sta_lightning.weights.encoder import is_encoder_tensor
from sta_lightning.weights.formats.checkpoint import Checkpoint
from sta_lightning.weights.formats.huggingface import (
    clip_from_huggingface,
    clip_to_huggingface,
    encoder_from_huggingface,
    encoder_to_huggingface,
)
from sta_lightning.weights.formats.layout import clip_names

PROJECTION = "proj"
# What the names of a transformer's blocks contain.
_BLOCKS = {"open_clip": ".resblocks.", "huggingface": "encoder.layers."}


def image_encoder(checkpoint: Checkpoint, projection: TensorSource | None = None) -> dict[str, TensorSource]:
    """The image encoder of a checkpoint, unread, in open_clip's or timm's names without a prefix.

    Args:
        checkpoint: the file.
        projection: the pretrained model's ``proj``, for a checkpoint that comes without one, as
            Hugging Face's ``CLIPVisionModel`` does; shape ``[width, D]``.

    Raises:
        StaError: there is no image encoder, or it is not whole.
    """
    tensors, layout, title = checkpoint.tensors, checkpoint.layout, checkpoint.title
    refuse_foreign(checkpoint)
    if layout.kind in ("head", "unknown"):
        what = "a classification head" if layout.kind == "head" else "tensors of an unknown layout"
        raise StaError(
            f"{title} holds {what}, not an image encoder. Give a checkpoint of a CLIP or of a vision transformer."
        )
    if layout.kind != "huggingface":
        names = [name for name in tensors if is_encoder_tensor(name, layout.prefix)]
        return {name.removeprefix(layout.prefix): tensors[name] for name in names}
    found = encoder_from_huggingface(checkpoint)
    if not layout.projection and projection is not None:
        width = found["class_embedding"].shape[0]
        if len(projection.shape) != 2 or projection.shape[0] != width:
            raise StaError(
                f"{title} has no projection, and the pretrained model's is of shape {tuple(projection.shape)}, which does not "
                f"fit its width of {width}. Give the pretrained model of the same architecture."
            )
        found[PROJECTION] = projection
    return found


def whole_clip(checkpoint: Checkpoint) -> dict[str, TensorSource]:
    """A whole CLIP, unread, in open_clip's names.

    Raises:
        StaError: there is no text tower, or something is not whole.
    """
    tensors, layout = checkpoint.tensors, checkpoint.layout
    if layout.text is None:
        raise StaError(f"{checkpoint.title} holds no text tower ({layout.title}). Give a whole CLIP.")
    if layout.kind == "huggingface":
        return clip_from_huggingface(checkpoint, layout.text)
    return {own: tensors[name] for own, name in clip_names(tensors, layout).items()}


def in_huggingface(checkpoint: Checkpoint) -> dict[str, TensorSource]:
    """A whole CLIP, or the image encoder where there is no text tower, in Hugging Face's names.

    Raises:
        StaError: it is not of plain transformers of CLIP, or not whole.
    """
    if checkpoint.layout.text is None:
        return encoder_to_huggingface(image_encoder(checkpoint), checkpoint.title)
    return clip_to_huggingface(whole_clip(checkpoint), checkpoint.title)


def named_as(names: Collection[str], base: Checkpoint) -> Checkpoint:
    """A CLIP, unread, in open_clip's or Hugging Face's names, whichever the given names are of.

    As it is, if they are of neither, or it has no place in the other layout.
    """
    wanted = next((kind for kind, mark in _BLOCKS.items() if any(mark in name for name in names)), None)
    layout = base.layout
    if wanted is None or layout.kind not in _BLOCKS or layout.kind == wanted:
        return base
    with contextlib.suppress(StaError):
        if wanted == "huggingface":
            return replace(base, tensors=in_huggingface(base))
        if layout.text is not None:
            return replace(base, tensors=whole_clip(base))
        encoder = image_encoder(base)
        return replace(base, tensors={f"visual.{name}": source for name, source in encoder.items()})
    return base


def refuse_foreign(checkpoint: Checkpoint) -> None:
    """Refuse, by a StaError, what is known to be no model's weights."""
    if checkpoint.layout.foreign is not None:
        raise StaError(f"{checkpoint.title} holds {checkpoint.layout.foreign}.")
