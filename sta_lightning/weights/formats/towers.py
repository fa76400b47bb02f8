"""From any layout to open_clip's, which this package works in."""

from __future__ import annotations

from sta_lightning.arithmetic.sources import SourceDict, TensorSource
from sta_lightning.errors import StaError
from sta_lightning.weights.formats.huggingface import clip_from_huggingface, encoder_from_huggingface
from sta_lightning.weights.formats.layout import Layout, clip_names, encoder_names, recognise

PROJECTION = "proj"


def image_encoder(
    tensors: SourceDict,
    layout: Layout | None = None,
    *,
    projection: TensorSource | None = None,
    title: str = "the state dict",
) -> dict[str, TensorSource]:
    """The image encoder of a checkpoint, in open_clip's names (or timm's) without a prefix; nothing is read.

    Args:
        tensors: by the names in the file.
        layout: what :func:`~sta_lightning.weights.formats.recognise` found; it is asked if none is
            given.
        projection: the pretrained model's ``proj``, for a checkpoint that comes without one, as
            Hugging Face's ``CLIPVisionModel`` does; shape ``[width, D]``.
        title: what to call the checkpoint in a message.

    Raises:
        StaError: there is no image encoder, or it is not whole.
    """
    layout = layout or recognise(tensors, title)
    if layout.kind in ("head", "unknown"):
        what = "a classification head" if layout.kind == "head" else "tensors of an unknown layout"
        raise StaError(
            f"{title} holds {what}, not an image encoder. Give a checkpoint of a CLIP or of a vision transformer."
        )
    if layout.kind != "huggingface":
        return {own: tensors[name] for own, name in encoder_names(tensors, layout).items()}
    found = encoder_from_huggingface(tensors, layout, title)
    if not layout.projection and projection is not None:
        width = found["class_embedding"].shape[0]
        if len(projection.shape) != 2 or projection.shape[0] != width:
            raise StaError(
                f"{title} has no projection, and the pretrained model's is of shape {tuple(projection.shape)}, which does not "
                f"fit its width of {width}. Give the pretrained model of the same architecture."
            )
        found[PROJECTION] = projection
    return found


def whole_clip(
    tensors: SourceDict, layout: Layout | None = None, *, title: str = "the state dict"
) -> dict[str, TensorSource]:
    """A whole CLIP, in open_clip's names; nothing is read.

    Args:
        tensors: by the names in the file.
        layout: what :func:`~sta_lightning.weights.formats.recognise` found; it is asked if none is
            given.
        title: what to call the checkpoint in a message.

    Raises:
        StaError: there is no text tower, or something is not whole.
    """
    layout = layout or recognise(tensors, title)
    if layout.text is None:
        raise StaError(f"{title} holds no text tower ({layout.title}). Give a whole CLIP.")
    if layout.kind == "huggingface":
        return clip_from_huggingface(tensors, layout, title)
    return {own: tensors[name] for own, name in clip_names(tensors, layout).items()}
