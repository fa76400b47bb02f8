"""A checkpoint, understood: its layout, its image encoder, the CLIP around it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass

from sta_lightning.arithmetic.sources import SourceDict
from sta_lightning.errors import StaError, listed
from sta_lightning.weights.formats.architecture import check_whole
from sta_lightning.weights.formats.checkpoint import Checkpoint, open_checkpoint
from sta_lightning.weights.formats.layout import Layout, recognise
from sta_lightning.weights.formats.origin import is_ours
from sta_lightning.weights.formats.towers import PROJECTION, image_encoder, whole_clip
from sta_lightning.weights.sparse import KIND as VECTOR

NO_MODEL = ("importance", "probabilities", "head", VECTOR)
"""What the metadata's ``kind`` begins with in this package's files that hold no weights of a model."""


@dataclass(frozen=True)
class Model:
    """A checkpoint, understood.

    Attributes:
        checkpoint: the file.
        layout: of its tensors.
        encoder: its image encoder, in open_clip's names or timm's, without a prefix.
        clip: the whole CLIP, in open_clip's names; nothing where there is no text tower.
    """

    checkpoint: Checkpoint
    layout: Layout
    encoder: SourceDict
    clip: SourceDict | None

    @property
    def title(self) -> str:
        """What to call it in a message."""
        return self.checkpoint.title

    @property
    def lacks_projection(self) -> bool:
        """Whether it is a CLIP's image encoder whose projection lies elsewhere."""
        return self.layout.kind == "huggingface" and PROJECTION not in self.encoder


def open_model(
    path: str | os.PathLike[str],
    stack: ExitStack,
    *,
    unsafe_pickle: bool = False,
    pretrained: Model | None = None,
) -> Model:
    """Open a checkpoint of an image encoder, alone or in a CLIP; nothing is read yet.

    Args:
        path: see :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint`.
        stack: what closes the files.
        unsafe_pickle: see there.
        pretrained: the pretrained model: lends its projection where there is none, and must have
            the same tensors.

    Raises:
        StaError: names the file if it is broken, holds no image encoder, not all of one, or another
            than the pretrained.
    """
    checkpoint = open_checkpoint(path, stack, unsafe_pickle=unsafe_pickle)
    title = checkpoint.title
    kind = checkpoint.metadata.get("kind", "")
    if is_ours(checkpoint) and kind.split(":")[0] in NO_MODEL:
        raise StaError(
            f"{title} holds no weights of a model, but {kind!r}. Give a fine-tuned or a fused model."
        )
    layout = recognise(checkpoint.tensors, title)
    projection = None if pretrained is None else pretrained.encoder.get(PROJECTION)
    encoder = image_encoder(checkpoint.tensors, layout, projection=projection, title=title)
    clip = None if layout.text is None else whole_clip(checkpoint.tensors, layout, title=title)
    check_whole(encoder if clip is None else clip, title)
    if pretrained is not None:
        _check_same(encoder, pretrained.encoder, title, pretrained.title)
    return Model(checkpoint, layout, encoder, clip)


def _check_same(encoder: SourceDict, reference: SourceDict, title: str, reference_title: str) -> None:
    missing, extra = reference.keys() - encoder.keys(), encoder.keys() - reference.keys()
    shapes = [
        name for name in reference.keys() & encoder.keys() if reference[name].shape != encoder[name].shape
    ]
    if missing or extra or shapes:
        raise StaError(
            f"{title} is not of the architecture of the pretrained {reference_title}: it lacks {listed(sorted(missing))}; has "
            f"besides {listed(sorted(extra))}; of another shape are {listed(sorted(shapes))}. Give the model that it was "
            "fine-tuned from."
        )
