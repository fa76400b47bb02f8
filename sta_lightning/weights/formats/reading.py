"""For the rooms above: a checkpoint of any layout, as merging and building read one."""

from __future__ import annotations

import os
from contextlib import ExitStack

from torch import Tensor

from sta_lightning.arithmetic.sources import SourceDict, TensorSource, whole
from sta_lightning.weights.formats.checkpoint import Checkpoint, open_checkpoint
from sta_lightning.weights.formats.layout import Layout, recognise
from sta_lightning.weights.formats.towers import image_encoder, whole_clip


def open_sources(
    path: str | os.PathLike[str],
    stack: ExitStack,
    *,
    projection: TensorSource | None = None,
    unsafe_pickle: bool = False,
) -> tuple[SourceDict, dict[str, str]]:
    """The tensors of a checkpoint, unread, named as :func:`sta_lightning.weights.encoder_part` finds them; its metadata.

    Names of open_clip and timm, and those of files that hold no model (importances, heads), stay as
    they are in the file. Hugging Face's become open_clip's, and of a TorchScript archive only what
    is the model's is kept.

    Args:
        path: see :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint`.
        stack: what closes the files.
        projection: the pretrained model's ``proj``, for a checkpoint that comes without one.
        unsafe_pickle: see :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint`.

    Raises:
        StaError: names the file if it is missing, broken or of another format.
    """
    checkpoint = open_checkpoint(path, stack, unsafe_pickle=unsafe_pickle)
    layout = recognise(checkpoint.tensors, checkpoint.title)
    if not _is_foreign(checkpoint, layout):
        return checkpoint.tensors, dict(checkpoint.metadata)
    found = image_encoder(checkpoint.tensors, layout, projection=projection, title=checkpoint.title)
    return found, dict(checkpoint.metadata)


def load_state(path: str | os.PathLike[str], *, unsafe_pickle: bool = False) -> dict[str, Tensor]:
    """A checkpoint of any layout as a state dict in memory, named as :func:`open_sources` names; a CLIP is kept whole.

    Args:
        path: see :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint`.
        unsafe_pickle: see there.

    Raises:
        StaError: as :func:`open_sources`.
    """
    with ExitStack() as stack:
        checkpoint = open_checkpoint(path, stack, unsafe_pickle=unsafe_pickle)
        layout = recognise(checkpoint.tensors, checkpoint.title)
        tensors = checkpoint.tensors
        if _is_foreign(checkpoint, layout):
            found = whole_clip if layout.text is not None else image_encoder
            tensors = found(checkpoint.tensors, layout, title=checkpoint.title)
        return {name: whole(source) for name, source in tensors.items()}


def _is_foreign(checkpoint: Checkpoint, layout: Layout) -> bool:
    """Whether the names, or what lies beside the model, are not what this package's other rooms expect."""
    script = checkpoint.container == "TorchScript archive" and layout.kind == "open_clip"
    return layout.kind == "huggingface" or script
