"""Writing models in the layouts that other programs read, a piece at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sta_lightning.arithmetic.run import Sink
from sta_lightning.arithmetic.sources import SourceDict
from sta_lightning.arithmetic.states import is_finite, slices
from sta_lightning.arithmetic.workers import Alone
from sta_lightning.errors import StaError
from sta_lightning.weights.atomic import atomic_path
from sta_lightning.weights.opened import PathLike
from sta_lightning.weights.streamed import streamed

_PIECE = 1 << 22  # entries


def write_tensors(
    path: PathLike,
    tensors: SourceDict,
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
    allow_nonfinite: bool = False,
) -> None:
    """Write tensors to a safetensors file, whole or not at all, a piece at a time.

    Args:
        path: the file, ending in ``.safetensors``; missing folders are made.
        tensors: name -> tensor.
        metadata: text -> text.
        dtype: floating-point type to write floating-point tensors in; ``None`` for their own.
        allow_nonfinite: whether NaN and Inf are written as they are.

    Raises:
        StaError: an entry is NaN or Inf, or does not fit into ``dtype``, a source cannot be read or
            was changed, or the file cannot be written. An older file is then untouched.
    """
    planned = {
        name: (source.shape, dtype if dtype and source.dtype.is_floating_point else source.dtype)
        for name, source in tensors.items()
    }
    with streamed(path, planned, metadata, Alone()) as sink:
        copy_tensors(tensors, sink, allow_nonfinite=allow_nonfinite)


def copy_tensors(tensors: SourceDict, sink: Sink, *, allow_nonfinite: bool = False) -> None:
    """Write tensors to where they were planned in a file, a piece at a time, in its types.

    Raises:
        StaError: an entry is NaN or Inf, or does not fit into its type, or a source cannot be read
            or was changed.
    """
    for name, source in tensors.items():
        for piece in slices(source.shape.numel(), _PIECE):
            entries = source.read(piece, source.dtype)
            if not allow_nonfinite and source.dtype.is_floating_point and not is_finite(entries):
                raise StaError(
                    f"tensor '{name}' holds NaN or Inf, and nothing was written. Make its file again, or keep it as it is by "
                    "`sta convert IN OUT.safetensors --to=safetensors --allow-nonfinite`."
                )
            found = entries.to(sink.dtype(name))
            if found.dtype != entries.dtype and not bool(
                (torch.isfinite(found) == torch.isfinite(entries)).all()
            ):
                raise StaError(
                    f"tensor '{name}' has entries too large for {found.dtype}. Ask for --dtype bfloat16 or float32."
                )
            sink.write(name, piece.start, found)
    for source in tensors.values():
        source.check()


def write_huggingface(
    folder: PathLike,
    tensors: SourceDict,
    config: Mapping[str, Any],
    card: str,
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
    allow_nonfinite: bool = False,
    preprocessor: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder for ``from_pretrained`` of transformers, whole or not at all.

    Args:
        folder: where to; it must not be there yet, or be empty.
        tensors: in Hugging Face's names.
        config: for ``config.json``.
        card: for ``README.md``.
        metadata: of ``model.safetensors``.
        dtype: floating-point type to write; ``None`` for the tensors' own.
        allow_nonfinite: whether NaN and Inf are written as they are.
        preprocessor: for ``preprocessor_config.json``, if any.

    Raises:
        StaError: as :func:`write_tensors`, or there is something at ``folder``.
    """
    with atomic_path(folder, folder=True) as temporary:
        write_tensors(
            temporary / "model.safetensors",
            tensors,
            {"format": "pt", **metadata},
            dtype=dtype,
            allow_nonfinite=allow_nonfinite,
        )
        _json(temporary / "config.json", config)
        if preprocessor is not None:
            _json(temporary / "preprocessor_config.json", preprocessor)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def image_processor(size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """A ``preprocessor_config.json``: resize the short side, crop the centre, normalise.

    Mean and standard deviation are per channel, of pixels scaled to 0..1; the size is in pixels.
    """
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_convert_rgb": True,
    }


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
