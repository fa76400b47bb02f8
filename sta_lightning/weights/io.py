"""Weights in and out: any checkpoint in, with nothing in it executed; safetensors out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from sta_lightning.arithmetic.checks import check_dtype
from sta_lightning.arithmetic.sources import whole
from sta_lightning.arithmetic.states import StateDict, nonfinite_names
from sta_lightning.errors import StaError, listed
from sta_lightning.weights.atomic import atomic_path
from sta_lightning.weights.encoder import encoder_part, unwrapped
from sta_lightning.weights.format import check_writable, header_of, packed
from sta_lightning.weights.formats import load_state, open_checkpoint
from sta_lightning.weights.hashes import remember_sha256
from sta_lightning.weights.opened import SAFETENSORS, PathLike, existing
from sta_lightning.weights.tensor_file import TensorFile


def load_weights(path: PathLike, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Read a state dict from a file, onto the CPU.

    Args:
        path: a ``.safetensors`` file, or a ``.ckpt``, ``.pt``, ``.pth`` or ``.bin`` checkpoint, of
            which no code is run; the state dict may lie under ``state_dict`` (Lightning),
            ``model_state_dict`` or ``model``.
        dtype: floating-point type to convert floating-point tensors to; ``None`` keeps what is
            stored.

    Returns:
        Tensor name, as in the file -> tensor.

    Raises:
        StaError: names the file if it is missing, truncated, of another format, or holds more than
            tensors.
    """
    check_dtype(dtype)
    with ExitStack() as stack:
        tensors = open_checkpoint(existing(path), stack).tensors.items()
        return {name: whole(t, dtype if t.dtype.is_floating_point else None) for name, t in tensors}


def encoder_weights(
    source: PathLike | StateDict, *, names: Collection[str], prefix: str | None = None
) -> dict[str, Tensor]:
    """Take the image encoder out of a file or a state dict.

    Args:
        source: a checkpoint of any known layout or a state dict: the encoder alone, a whole CLIP
            model, a Lightning checkpoint, wrapped or compiled modules.
        names: see :func:`~sta_lightning.weights.encoder_part`.
        prefix: see there.

    Returns:
        Tensor name without prefix -> tensor, in the order of ``names``. The text tower,
        ``logit_scale`` and heads are left.

    Raises:
        StaError: if tensors are missing, the encoder holds others too, a shape differs, or more
            than one prefix fits.
    """
    if isinstance(source, Mapping):
        title = "the state dict"
        return encoder_part(unwrapped(source, title), names=names, prefix=prefix, title=title)
    return encoder_part(load_state(source), names=names, prefix=prefix, title=f"'{os.fspath(source)}'")


def read_metadata(path: PathLike) -> dict[str, str]:
    """The metadata, text -> text, that a ``.safetensors`` file carries; empty if it has none.

    Raises:
        StaError: if the file is missing, broken or of another format.
    """
    if existing(path).suffix != SAFETENSORS:
        raise StaError(f"'{path}' carries no metadata: only {SAFETENSORS} files do.")
    with TensorFile(path) as file:
        return file.metadata


def save_weights(
    path: PathLike,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    allow_nonfinite: bool = False,
) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    The same tensors and metadata give the same bytes.

    Args:
        path: the file to write, ending in ``.safetensors``; missing folders are made.
        tensors: name -> tensor, on any device; tensors that share memory are written one by one.
        metadata: text -> text, usually from :func:`sta_lightning.weights.provenance`.
        allow_nonfinite: whether NaN and Inf may be written.

    Raises:
        StaError: if the name has another ending, an entry is NaN or Inf, a tensor or the metadata
            cannot be held, or the file cannot be written. An older file at ``path`` is then
            untouched.
    """
    if Path(path).suffix != SAFETENSORS:
        raise StaError(f"cannot save weights as '{path}': the name must end in {SAFETENSORS}.")
    metadata = metadata or {}
    check_writable(tensors, metadata)
    if not allow_nonfinite and (broken := nonfinite_names(tensors)):
        raise StaError(
            f"'{path}' was not written: NaN or Inf in {len(broken)} of {len(tensors)} tensors, {listed(broken)}. Whatever "
            "computed them went wrong; an older file is as it was."
        )
    header, order = header_of(tensors, metadata)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        digest = hashlib.sha256()
        for data in chain([memoryview(header)], (packed(tensors[name]) for name in order)):
            digest.update(data)
            stream.write(data)
    remember_sha256(path, digest.hexdigest())
