"""The pretrained encoder for a merge: from its file where there is one, else as built."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.encoders.architectures import MINIATURE, MINIATURE_CONFIG, is_hub_name
from sta_lightning.encoders.build import build_encoder
from sta_lightning.encoders.sources import weights_file
from sta_lightning.encoders.spec import encoder_spec
from sta_lightning.engine import Pretrained
from sta_lightning.engine.rest import open_rest
from sta_lightning.errors import MissingError, StaError, listed
from sta_lightning.weights import encoder_prefix, is_encoder_tensor, tensor_digest
from sta_lightning.weights.formats import (
    check_kind,
    describe,
    open_checkpoint,
    open_clip_configs,
    open_sources,
    recognise,
    shared_names,
)

OTHER = "a model of"
"""How the description of a model begins that is neither an image encoder nor a CLIP."""


def known_architectures() -> dict[str, Mapping[str, Any]]:
    """open_clip's configurations, read without importing it, and the package's own, by name."""
    spec = encoder_spec(MINIATURE)
    own = json.loads(MINIATURE_CONFIG.read_text(encoding="utf-8"))
    return {**open_clip_configs(), MINIATURE: {**own, "preprocess_cfg": {"mean": spec.mean, "std": spec.std}}}


def found_encoder(pretrained: str | None) -> str:
    """The name of the encoder in a file.

    Raises:
        StaError: there is no file, or it does not tell.
    """
    if pretrained is None or not Path(pretrained).exists():
        raise (MissingError if pretrained else StaError)(
            "the pretrained model that the others were fine-tuned from must be given, as a file or a folder"
            + (f"; there is none at '{pretrained}' (looked from {Path.cwd()})" if pretrained else "")
            + ". A tag of open_clip needs its encoder's name too (encoder, such as ViT-B-16), and the package's own encoder "
            "is asked for as encoder=miniature."
        )
    name, architecture = describe(pretrained, known_architectures())
    if name is None:
        raise StaError(
            f"'{pretrained}' does not tell how it computes: it is {architecture.title}. Give the encoder's name; of its "
            f"sizes are {listed(architecture.names)} (with -quickgelu for weights that descend from OpenAI's)."
        )
    return name


def pretrained_for_merge(
    name: str | None,
    pretrained: str | None,
    image_size: int | None,
    stack: ExitStack,
    *,
    build: Callable[[], nn.Module] | None = None,
) -> Pretrained:
    """Open the pretrained encoder.

    A file, or a folder with one, is read as it is, without building the encoder, at the encoder's
    own image size. Everything else is built as :func:`~sta_lightning.encoders.build_encoder` does.

    Args:
        name: the encoder's name; ``None`` for what the file holds.
        pretrained: its pretrained weights, a file or a tag.
        image_size: side of the input in pixels; ``None`` for the encoder's own.
        stack: what closes the file.
        build: gives the encoder, where it may have been built already.

    Raises:
        StaError: if the encoder or its weights cannot be found, or do not fit.
    """
    if name is None and (image_size is not None or pretrained is None or not Path(pretrained).exists()):
        name = found_encoder(pretrained)
    # open_clip, whose import takes seconds, is not asked.
    configs = known_architectures()
    clip = name is None or is_hub_name(name) or name in configs
    file = Path(str(pretrained)) if name is None else weights_file(name, pretrained) if clip else None
    if file is None or image_size is not None:
        assert name is not None
        return built_pretrained(name, pretrained, image_size, build)
    tensors, metadata = open_sources(file, stack)
    check_kind(metadata, f"'{file}'")
    prefix = encoder_prefix(tensors)
    inside = bool(prefix) and all(key.startswith(prefix) for key in tensors)
    if name is None and not inside and recognise(tensors).kind == "unknown":
        shared = shared_names(tensors)
        own = {key: source for key, source in tensors.items() if key not in shared}
        return Pretrained(None, own, "", file, architecture=f"{OTHER} {len(own)} tensors", shared=shared)
    own = {key.removeprefix(prefix): t for key, t in tensors.items() if is_encoder_tensor(key, prefix)}
    architecture = None
    if name is None:
        name, found = describe(file, configs)
        architecture = found.title if name is None else None
    # Named alone in its file, as an encoder's own state dict, it is so in the one that is made.
    alone = {"class_embedding", "patch_embed.proj.weight"} & set(open_checkpoint(file, stack).tensors)
    rest = open_rest(file, stack)
    return Pretrained(name, own, "" if alone else "visual.", file, architecture=architecture, rest=rest)


def built_pretrained(
    name: str, pretrained: str | None, image_size: int | None, build: Callable[[], nn.Module] | None = None
) -> Pretrained:
    """:func:`pretrained_for_merge` from a module: what ``build`` gives, or one built anew."""
    state = (build_encoder(name, pretrained, image_size) if build is None else build()).state_dict()
    file = pretrained_file(name, pretrained)
    prefix = encoder_spec(name, image_size).key_prefix
    digest, tag = (tensor_digest(state), pretrained) if file is None else (None, None)
    return Pretrained(name, in_memory(state), prefix, file, digest, image_size, tag)


def pretrained_file(name: str, pretrained: str | None) -> Path | None:
    """The file of the pretrained weights; ``None`` for a tag of open_clip or random ones."""
    if pretrained is None:
        return weights_file(name, None) if name == MINIATURE or is_hub_name(name) else None
    return Path(pretrained) if Path(pretrained).exists() else None
