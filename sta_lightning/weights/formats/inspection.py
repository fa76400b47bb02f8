"""What there is to know of a checkpoint: ``sta inspect``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from sta_lightning.arithmetic.sources import TensorSource
from sta_lightning.weights.formats.adapter import CONFIG as ADAPTER_CONFIG
from sta_lightning.weights.formats.adapter import is_adapter
from sta_lightning.weights.formats.architecture import Architecture, Configs, differences, guess
from sta_lightning.weights.formats.card import CARD
from sta_lightning.weights.formats.checkpoint import Checkpoint, open_checkpoint, read_table
from sta_lightning.weights.formats.origin import computed_by, known_name, made_by, settings_of
from sta_lightning.weights.formats.towers import image_encoder, whole_clip
from sta_lightning.weights.opened import PathLike
from sta_lightning.weights.provenance import decoded

# Of the metadata, what is shown in a place of its own or is not for reading.
_SHOWN = {"format", "package", "version", "kind", "settings", "sources", CARD, "extents"}
# Of an adapter's configuration, what tells the adapter.
_OF_ADAPTERS = ("base_model_name_or_path", "peft_type", "r", "lora_alpha", "use_rslora", "use_dora")


def inspect(
    path: PathLike,
    *,
    configs: Configs,
    unsafe_pickle: bool = False,
    state: str | None = None,
) -> dict[str, Any]:
    """Describe a checkpoint; none of its entries is read.

    Args:
        path: see :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint`.
        configs: known architectures.
        unsafe_pickle: see :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint`.
        state: which state dict of the checkpoint; see there.

    Returns:
        A table of plain values, for JSON: ``file``, ``bytes``, ``container``, ``layout``, ``kind``,
        ``made_by``, ``states`` (the keys of its state dicts), ``architecture``, ``tensors``,
        ``parameters``, ``types``, ``settings``, ``sources``, ``metadata`` and ``facts``.

    Raises:
        StaError: the file is missing or broken.
    """
    with ExitStack() as stack:
        checkpoint = open_checkpoint(path, stack, unsafe_pickle=unsafe_pickle, state=state)
        layout, metadata = checkpoint.layout, checkpoint.metadata
        known = layout.kind not in ("head", "unknown")
        encoder = image_encoder(checkpoint) if known else {}
        clip = whole_clip(checkpoint) if layout.text is not None else None
        architecture = guess(encoder, clip, configs)
        adapter = read_table(checkpoint.files[0].parent / ADAPTER_CONFIG) if is_adapter(path) else {}
        return {
            "file": os.fspath(path),
            "bytes": sum(file.stat().st_size for file in checkpoint.files),
            "files": [file.name for file in checkpoint.files],
            "container": checkpoint.container,
            "layout": "an adapter, as peft saves it" if adapter else layout.title,
            "kind": metadata.get("kind"),
            "made_by": made_by(checkpoint),
            "states": list(checkpoint.states),
            "architecture": _architecture(architecture, checkpoint, configs) if known else None,
            "tensors": len(checkpoint.tensors),
            "parameters": {
                "all": _count(checkpoint.tensors.values()),
                "image encoder": _count(encoder.values()),
                "text tower": 0 if clip is None else _count(clip.values()) - _count(encoder.values()),
            },
            "types": _types(checkpoint.tensors),
            "settings": {key: adapter[key] for key in _OF_ADAPTERS if adapter.get(key)}
            or decoded(metadata, "settings"),
            "sources": decoded(metadata, "sources"),
            "metadata": {key: decoded(metadata, key) for key in metadata if key not in _SHOWN},
            "facts": dict(checkpoint.facts),
        }


def describe(path: PathLike, configs: Configs) -> tuple[str | None, Architecture]:
    """The encoder in a checkpoint: its name, where it is beyond doubt, and its sizes.

    ``None`` for the name where nobody says which activation it was trained with, and the known
    architectures of its sizes differ in that: OpenAI's and open_clip's of one shape do.

    Args:
        path: see :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint`.
        configs: known architectures.

    Raises:
        StaError: the file is missing or broken.
    """
    with ExitStack() as stack:
        checkpoint = open_checkpoint(path, stack)
        if checkpoint.layout.kind in ("head", "unknown"):
            return None, Architecture("unknown")
        clip = whole_clip(checkpoint) if checkpoint.layout.text is not None else None
        found = guess(image_encoder(checkpoint), clip, configs)
        computed = computed_by(checkpoint, found, configs)
        name = known_name(checkpoint, found, configs, None if computed is None else computed.activation)
        kinds = {bool(configs[other].get("quick_gelu")) for other in found.names}
        said = settings_of(checkpoint).get("encoder")
        sure = computed is not None or len(kinds) == 1 or said == name
        fits = name not in configs or not differences(found, configs[str(name)])
        return (name if sure and fits else None), found


def _architecture(found: Architecture, checkpoint: Checkpoint, configs: Configs) -> dict[str, Any]:
    computed = computed_by(checkpoint, found, configs)
    activation = None if computed is None else computed.activation
    return {
        "title": found.title,
        "name": known_name(checkpoint, found, configs, activation),
        "names": list(found.names),
        "activation": activation,
        "image_size": found.image_size,
        "patch": found.patch,
        "features": found.features,
        "vision": None if found.vision is None else dict(vars(found.vision)),
        "text": None if found.text is None else dict(vars(found.text)),
        "vocabulary": found.vocabulary,
    }


def _count(sources: Iterable[TensorSource]) -> int:
    """Entries of floating-point tensors."""
    return sum(source.shape.numel() for source in sources if source.dtype.is_floating_point)


def _types(tensors: Mapping[str, TensorSource]) -> dict[str, dict[str, int]]:
    """By type of entries: tensors, entries, bytes."""
    found: dict[str, dict[str, int]] = {}
    for source in tensors.values():
        entries, dtype = source.shape.numel(), str(source.dtype).removeprefix("torch.")
        row = found.setdefault(dtype, {"tensors": 0, "entries": 0, "bytes": 0})
        row["tensors"] += 1
        row["entries"] += entries
        row["bytes"] += entries * source.dtype.itemsize
    return found
