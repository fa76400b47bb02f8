"""From what a pickle says to tensors: the calls that rebuild one are read, not made."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch

from sta_lightning.arithmetic.sources import TensorSource
from sta_lightning.errors import StaError
from sta_lightning.weights.formats.admission import NESTED, REBUILDS, STORAGES
from sta_lightning.weights.formats.legacy import read_storages
from sta_lightning.weights.formats.pickled import DamagedPickleError
from sta_lightning.weights.formats.storages import HeldBytes, Shelf, Storage, StoredTensor
from sta_lightning.weights.formats.symbols import Global, Made

_MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")


def storage_dtype(kind: Any, title: str) -> torch.dtype | None:
    """The type of a storage's entries by its class; nothing for plain bytes.

    Raises:
        StaError: no such class can be read (complex or quantised ones).
    """
    name = kind.name if isinstance(kind, Global) and kind.module in ("torch", "torch.storage") else str(kind)
    if name == "UntypedStorage":
        return None
    if name not in STORAGES:
        raise StaError(
            f"{title} holds a tensor in a '{name}', which cannot be read. Convert it to a dense real tensor first."
        )
    found: torch.dtype = getattr(torch, STORAGES[name])
    return found


def as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """A mapping, be it plain or ordered; nothing for everything else."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Made) and str(value.maker) in _MAPPINGS:
        first = value.args[0] if value.args else ()
        pairs = dict(first) if isinstance(first, (Mapping, list, tuple)) else {}
        return {**pairs, **value.pairs}
    return None


def as_tensor(value: Any, title: str) -> TensorSource | None:
    """The tensor that a value stands for; nothing if it stands for something else.

    Args:
        value: from :func:`~sta_lightning.weights.formats.pickled.interpret`.
        title: what to call the file in a message.

    Raises:
        StaError: it stands for a tensor that cannot be read, or cannot be.
    """
    if not isinstance(value, Made) or not value.called or str(value.maker) not in REBUILDS:
        return None
    kind, args = value.maker.name, value.args
    try:
        if kind in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return as_tensor(args[0], title)
        if kind == "_rebuild_from_type_v2":
            # A tensor with attributes of its own: function, class, arguments, attributes.
            return as_tensor(Made(args[0], tuple(args[2]), called=True), title)
        storage = _storage(args[0], title)
        dtype = _named_dtype(args[6]) if kind == "_rebuild_tensor_v3" else storage.dtype
        if dtype is None:
            raise ValueError("a tensor without a type")
        return StoredTensor(storage, dtype, args[1], tuple(args[2]), tuple(args[3]))
    except (IndexError, TypeError, ValueError, AttributeError, DamagedPickleError) as error:
        raise StaError(
            f"{title} describes a tensor in a way that is not understood ({error}). It may be damaged, or of a kind that "
            "cannot be merged (sparse, quantised, complex); save its state dict as .safetensors."
        ) from error


def _storage(value: Any, title: str) -> Storage:
    if isinstance(value, Storage):
        return value
    if isinstance(value, Made) and str(value.maker) == NESTED:
        content = value.args[0]
        if isinstance(content, Made) and str(content.maker) == "_codecs.encode":
            # How protocols 0 to 2 write bytes: as a text of as many characters.
            content = str(content.args[0]).encode("latin-1")
        if not isinstance(content, bytes):
            raise ValueError("a storage that is no bytes")
        shelf = Shelf(title, HeldBytes(content))
        found = read_storages(io.BytesIO(content), len(content), shelf, storage_dtype)
        if isinstance(found, Storage):
            return found
    raise ValueError("a tensor without a storage")


def _named_dtype(value: Any) -> torch.dtype:
    found = getattr(torch, value.name, None) if isinstance(value, Global) else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"the type {value}")
    return found
