"""The pretrained encoder for a merge: from its file where that says enough, else as built."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from torch import nn

from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.encoders.architectures import MINIATURE, is_hub_name
from sta_lightning.encoders.build import build_encoder
from sta_lightning.encoders.sources import weights_file
from sta_lightning.encoders.spec import encoder_spec
from sta_lightning.engine import Pretrained
from sta_lightning.weights import SAFETENSORS, encoder_prefix, is_encoder_tensor, tensor_digest
from sta_lightning.weights.formats import open_clip_configs, open_sources


def pretrained_for_merge(
    name: str, pretrained: str | None, image_size: int | None, stack: ExitStack
) -> Pretrained:
    """Open the pretrained encoder.

    A safetensors file, or a folder with one, is read as it is, without building the encoder, for
    the package's own encoder and open_clip's architectures at their own image size. Everything else
    is built as :func:`~sta_lightning.encoders.build_encoder` does.

    Args:
        name: the encoder's name.
        pretrained: its pretrained weights, a file or a tag.
        image_size: side of the input in pixels; ``None`` for the encoder's own.
        stack: what closes the file.

    Raises:
        StaError: if the encoder or its weights cannot be found, or do not fit.
    """
    # open_clip, whose import takes seconds, is not asked.
    clip = name == MINIATURE or is_hub_name(name) or name in open_clip_configs()
    file = weights_file(name, pretrained) if clip else None
    if file is not None and (file.suffix == SAFETENSORS or file.is_dir()) and image_size is None:
        tensors, _ = open_sources(file, stack)
        prefix = encoder_prefix(tensors)
        own = {key.removeprefix(prefix): t for key, t in tensors.items() if is_encoder_tensor(key, prefix)}
        return Pretrained(name, own, "visual.", file)
    return built_pretrained(name, pretrained, image_size)


def built_pretrained(
    name: str, pretrained: str | None, image_size: int | None, encoder: nn.Module | None = None
) -> Pretrained:
    """:func:`pretrained_for_merge` from a module: ``encoder``, if it has been built already."""
    state = (build_encoder(name, pretrained, image_size) if encoder is None else encoder).state_dict()
    file = pretrained_file(name, pretrained)
    prefix = encoder_spec(name, image_size).key_prefix
    digest, tag = (tensor_digest(state), pretrained) if file is None else (None, None)
    return Pretrained(name, in_memory(state), prefix, file, digest, image_size, tag)


def pretrained_file(name: str, pretrained: str | None) -> Path | None:
    """The file of the pretrained weights; ``None`` for a tag of open_clip or random ones."""
    if pretrained is None:
        return weights_file(name, None) if name == MINIATURE or is_hub_name(name) else None
    return Path(pretrained) if Path(pretrained).exists() else None
