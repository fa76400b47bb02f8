"""The pretrained encoder for a merge: from its file where that says enough, else as built."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.encoders.architectures import MINIATURE, TIMM_PREFIX, is_hub_name
from sta_lightning.encoders.build import build_encoder
from sta_lightning.encoders.sources import MINIATURE_WEIGHTS, weights_file
from sta_lightning.encoders.spec import encoder_spec
from sta_lightning.engine import Pretrained
from sta_lightning.weights import encoder_prefix, is_encoder_tensor, tensor_digest
from sta_lightning.weights.formats import open_sources

_CLIP_PREFIX = "visual."


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
    file = weights_file(name, pretrained) if _is_clip(name) else None
    if file is not None and (file.suffix == ".safetensors" or file.is_dir()) and image_size is None:
        tensors, _ = open_sources(file, stack)
        prefix = encoder_prefix(tensors)
        names = [key for key in tensors if is_encoder_tensor(key, prefix)]
        own = {key.removeprefix(prefix): tensors[key] for key in names}
        return Pretrained(name, own, _CLIP_PREFIX, file)
    return built_pretrained(name, pretrained, image_size)


def built_pretrained(
    name: str, pretrained: str | None, image_size: int | None, encoder: nn.Module | None = None
) -> Pretrained:
    """The pretrained encoder as a module, for a merge.

    Args:
        name: the encoder's name.
        pretrained: its pretrained weights, a file or a tag.
        image_size: side of the input in pixels; ``None`` for the encoder's own.
        encoder: the module, if it has been built already.

    Raises:
        StaError: if the encoder or its weights cannot be found, or do not fit.
    """
    state = (build_encoder(name, pretrained, image_size) if encoder is None else encoder).state_dict()
    file = pretrained_file(name, pretrained)
    prefix = encoder_spec(name, image_size).key_prefix
    if file is None:
        return Pretrained(
            name, in_memory(state), prefix, None, tensor_digest(state), image_size, tag=pretrained
        )
    return Pretrained(name, in_memory(state), prefix, file, image_size=image_size)


def pretrained_file(name: str, pretrained: str | None) -> Path | None:
    """The file of the pretrained weights; ``None`` for a tag of open_clip or random ones."""
    if is_hub_name(name) and pretrained is None:
        return weights_file(name, None)
    if pretrained is None:
        return MINIATURE_WEIGHTS if name == MINIATURE else None
    return Path(pretrained) if Path(pretrained).exists() else None


def _is_clip(name: str) -> bool:
    """Whether a name is that of a CLIP; open_clip is not imported to tell."""
    if name == MINIATURE or is_hub_name(name):
        return True
    if name.startswith(TIMM_PREFIX):
        return False
    library = find_spec("open_clip")
    if library is None or library.origin is None:
        return False
    return (Path(library.origin).parent / "model_configs" / f"{name}.json").is_file()
