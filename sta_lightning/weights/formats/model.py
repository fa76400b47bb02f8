"""A checkpoint of any layout, understood: its image encoder, and the CLIP around it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor

from sta_lightning.arithmetic.checks import compare_names
from sta_lightning.arithmetic.sources import SourceDict, TensorSource, whole
from sta_lightning.arithmetic.states import StateDict
from sta_lightning.errors import StaError
from sta_lightning.weights.formats.adapter import is_adapter, open_adapter
from sta_lightning.weights.formats.architecture import check_whole
from sta_lightning.weights.formats.checkpoint import Checkpoint, open_checkpoint
from sta_lightning.weights.formats.layout import Layout
from sta_lightning.weights.formats.towers import PROJECTION, image_encoder, refuse_foreign, whole_clip
from sta_lightning.weights.opened import PathLike
from sta_lightning.weights.provenance import PACKAGE
from sta_lightning.weights.sparse import KIND as VECTOR

NO_MODEL = ("importance", "probabilities", "head", VECTOR)
"""What ``kind`` begins with in this package's files that hold no weights of a model."""


@dataclass(frozen=True)
class Model:
    """A checkpoint, understood.

    Attributes:
        checkpoint: the file.
        encoder: its image encoder, in open_clip's names or timm's, without a prefix.
        clip: the whole CLIP, in open_clip's names; ``None`` where there is no text tower.
    """

    checkpoint: Checkpoint
    encoder: SourceDict
    clip: SourceDict | None

    @property
    def layout(self) -> Layout:
        """How its tensors are named."""
        return self.checkpoint.layout

    @property
    def title(self) -> str:
        """What to call it in a message."""
        return self.checkpoint.title

    @property
    def lacks_projection(self) -> bool:
        """Whether it is a CLIP's image encoder whose projection lies elsewhere."""
        return self.layout.kind == "huggingface" and PROJECTION not in self.encoder


def open_model(
    path: PathLike,
    stack: ExitStack,
    *,
    unsafe_pickle: bool = False,
    pretrained: Model | None = None,
    state: str | None = None,
) -> Model:
    """Open a checkpoint of an image encoder, alone or in a CLIP; nothing is read yet.

    Args:
        path: see :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint`.
        stack: what closes the files.
        unsafe_pickle: see there.
        pretrained: the pretrained model: lends its projection where there is none, and must have
            the same tensors.
        state: see :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint`.

    Raises:
        StaError: names the file if it is broken, holds no image encoder, not all of one, or another
            than the pretrained.
    """
    checkpoint = open_checkpoint(path, stack, unsafe_pickle=unsafe_pickle, state=state)
    title = checkpoint.title
    check_kind(checkpoint.metadata, title)
    encoder = image_encoder(checkpoint, None if pretrained is None else pretrained.encoder.get(PROJECTION))
    clip = None if checkpoint.layout.text is None else whole_clip(checkpoint)
    check_whole(encoder if clip is None else clip, title)
    if pretrained is not None:
        reference = f"the pretrained {pretrained.title}"
        compare_names(pretrained.encoder, encoder, reference_name=reference, other_name=title, kinds=False)
    return Model(checkpoint, encoder, clip)


def check_kind(metadata: Mapping[str, str], title: str) -> None:
    """Refuse, by a StaError, a file of this package that says it holds no weights of a model."""
    kind = metadata.get("kind", "")
    if metadata.get("package") == PACKAGE and kind.split(":")[0] in NO_MODEL:
        raise StaError(
            f"{title} holds no weights of a model, but {kind!r}. Give a fine-tuned or a fused model."
        )


def open_on(
    path: PathLike | StateDict, stack: ExitStack, base: PathLike | None, *, unsafe_pickle: bool = False
) -> Checkpoint:
    """A checkpoint, or the model that an adapter makes of its base.

    Raises:
        StaError: see :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint` and
            :func:`~sta_lightning.weights.formats.adapter.open_adapter`.
    """
    if base is not None and not isinstance(path, Mapping) and is_adapter(path):
        return open_adapter(path, open_checkpoint(base, stack), stack)
    return open_checkpoint(path, stack, unsafe_pickle=unsafe_pickle)


def open_sources(
    path: PathLike | StateDict,
    stack: ExitStack,
    *,
    projection: TensorSource | None = None,
    unsafe_pickle: bool = False,
    base: PathLike | None = None,
) -> tuple[SourceDict, dict[str, str]]:
    """The tensors of a checkpoint, unread, named as ``encoder_part`` finds them; its metadata.

    Names of open_clip and timm, and those of files that hold no model (importances, heads), stay as
    they are in the file. Hugging Face's become open_clip's, and of a TorchScript archive only what
    is the model's is kept.

    Args:
        path: see :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint`.
        stack: what closes the files.
        projection: see :func:`~sta_lightning.weights.formats.towers.image_encoder`.
        unsafe_pickle: see :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint`.
        base: the model that an adapter stands on.

    Raises:
        StaError: names the file if it is missing, broken or of another format.
    """
    checkpoint = open_on(path, stack, base, unsafe_pickle=unsafe_pickle)
    foreign = _is_foreign(checkpoint)
    return image_encoder(checkpoint, projection) if foreign else checkpoint.tensors, dict(checkpoint.metadata)


def load_state(path: PathLike) -> dict[str, Tensor]:
    """A checkpoint as a state dict, named as :func:`open_sources` does; a CLIP is kept whole.

    Raises:
        StaError: as :func:`open_sources`.
    """
    with ExitStack() as stack:
        checkpoint = open_checkpoint(path, stack)
        tensors = checkpoint.tensors
        if _is_foreign(checkpoint):
            tensors = image_encoder(checkpoint) if checkpoint.layout.text is None else whole_clip(checkpoint)
        return {name: whole(source) for name, source in tensors.items()}


def _is_foreign(checkpoint: Checkpoint) -> bool:
    """Whether names, or what lies beside the model, are not what other rooms expect."""
    refuse_foreign(checkpoint)
    kind = checkpoint.layout.kind
    script = checkpoint.container == "TorchScript archive" and kind == "open_clip"
    return kind == "huggingface" or script
