"""The state dict in what a pickled checkpoint says, and the plain facts beside it.

The calls that rebuild a tensor are read off, not made. What a pickle says may be shared and nested
without end: every walk here is bounded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch

from sta_lightning.arithmetic.sources import TensorSource
from sta_lightning.errors import StaError, listed
from sta_lightning.weights.formats.admission import MAPPINGS, NESTED, REBUILDS
from sta_lightning.weights.formats.archive import Pickled, read_old
from sta_lightning.weights.formats.pickled import DamagedPickleError, Global, Made, as_key
from sta_lightning.weights.formats.storages import HeldBytes, Storage, Storages, StoredTensor

# Where training codes put the state dict inside a checkpoint; Lightning's name first.
_STATE_KEYS = ("state_dict", "model_state_dict", "model")
# What a training needs to go on, and nobody wants to read.
_BULKY = (
    *("optimizer_states", "optimizer", "lr_schedulers", "scheduler", "scaler", "loops"),
    *("callbacks", "rng_state"),
)
_PLAIN = (str, int, float, bool, type(None))
_DEEPEST = 64  # modules in each other
_MOST = 200_000  # tensors, modules and other attributes in all; plain facts in all
_NESTED_INSTRUCTIONS = 200  # of each pickle of a single storage


def state_keys(pickled: Pickled, asked: str | None = None) -> tuple[str, ...]:
    """Under which keys a checkpoint holds state dicts; none for what is one itself.

    The first is the one that is read: that of the model, where others are averages of its weights.

    Args:
        pickled: what the file says.
        asked: another to read: its key, or a word that one key alone has, as ``state_dict_ema`` has
            ``ema``.

    Raises:
        StaError: there is none that was asked for.
    """
    outer = as_mapping(pickled.content) or {}
    usual = [key for key in _STATE_KEYS if _holds_state(outer.get(key))]
    others = [key for key, value in islice(outer.items(), _MOST) if isinstance(key, str) and _is_state(value)]
    plain = not usual and _has_tensors(outer)
    keys = () if plain else tuple(dict.fromkeys([*usual, *others]))
    if asked is None:
        return keys
    fitting = [key for key in keys if key == asked] or [key for key in keys if asked in key.split("_")]
    if len(fitting) != 1:
        raise StaError(
            f"{pickled.title} holds {'more than one' if fitting else 'no'} state dict {asked!r}; it holds "
            f"{listed(keys, len(keys)) if keys else 'one, without a name'}. Name one of these, or none."
        )
    return tuple(dict.fromkeys([*fitting, *keys]))


def state_of(pickled: Pickled, keys: tuple[str, ...] = ()) -> dict[str, TensorSource]:
    """The tensors, by name and unread, of a state dict, a checkpoint around one, or a module.

    Args:
        pickled: what the file says.
        keys: its :func:`state_keys`.

    Raises:
        StaError: there is no state dict, or something in it is no tensor.
    """
    found = pickled.content
    if keys:
        found = (as_mapping(found) or {})[keys[0]]
    if isinstance(found, Made) and not found.called and as_mapping(found) is None:
        return dict(_tensors_of(found, pickled))
    mapping = as_mapping(found)
    if not mapping:
        raise StaError(
            f"{pickled.title} holds no state dict (a {_kind(found)}, nothing under {listed(_STATE_KEYS)}). "
            "Save module.state_dict()."
        )
    if len(mapping) > _MOST:
        raise _without_end(pickled.title)
    state = {name: as_tensor(value, pickled.title) for name, value in mapping.items()}
    odd = [
        name if isinstance(name, str) else f"a {_kind(name)} as a name"
        for name, source in state.items()
        if not isinstance(name, str) or (source is None and not name.endswith("_extra_state"))
    ]
    if odd:
        raise StaError(
            f"{pickled.title} holds entries that are no tensors: {listed(odd)}. Save its state dict alone."
        )
    return {name: source for name, source in state.items() if source is not None}


def facts_of(pickled: Pickled, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """The plain values beside a checkpoint's state dicts (``keys``): epoch, version, settings."""
    outer = as_mapping(pickled.content)
    if outer is None:
        made = isinstance(pickled.content, Made)
        return {"class": str(pickled.content.maker)} if made else {}
    if not keys:
        return {}
    left = {*keys, *_STATE_KEYS, *_BULKY}
    beside = {key: value for key, value in outer.items() if key not in left}
    return _plain(beside, 5) or {}


def as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """A mapping, be it plain or ordered; ``None`` for everything else.

    Raises:
        StaError: it would be made of what is no list of keys and values, as Python 2 writes one.
    """
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, Made) or str(value.maker) not in MAPPINGS:
        return None
    first = value.args[0] if value.args else None
    try:
        if isinstance(first, (list, tuple)):
            first = {as_key(key): item for key, item in first}
    except StaError:
        raise
    except (TypeError, ValueError) as error:
        raise StaError(f"the checkpoint holds a mapping that is none ({error}). Make it again.") from error
    return {**first, **value.pairs} if isinstance(first, Mapping) else value.pairs


def as_tensor(value: Any, title: str, *, depth: int = 8) -> TensorSource | None:
    """The tensor that a value stands for, in ``depth`` wrappers at most; ``None`` if for no tensor.

    Raises:
        StaError: it stands for a tensor that cannot be read, or cannot be.
    """
    if not isinstance(value, Made) or not value.called or str(value.maker) not in REBUILDS:
        return None
    kind, args = value.maker.name, value.args
    try:
        if not depth:
            raise ValueError("tensors in tensors")
        if kind.startswith("_rebuild_parameter"):
            return as_tensor(args[0], title, depth=depth - 1)
        if kind == "_rebuild_from_type_v2":
            # A tensor with attributes of its own: function, class, arguments, attributes.
            return as_tensor(Made(args[0], args[2], called=True), title, depth=depth - 1)
        storage = _storage(args[0], title)
        dtype = _named_dtype(args[6]) if kind == "_rebuild_tensor_v3" else storage.dtype
        if dtype is None:
            raise ValueError("a tensor without a type")
        return StoredTensor(storage, dtype, args[1], args[2], args[3])
    except StaError:
        raise
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
        storages = Storages(title, HeldBytes(content))
        found = read_old(io.BytesIO(content), len(content), storages, most=_NESTED_INSTRUCTIONS)
        if isinstance(found, Storage):
            return found
    raise ValueError("a tensor without a storage")


def _named_dtype(value: Any) -> torch.dtype:
    found = getattr(torch, value.name, None) if isinstance(value, Global) else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"a type that is a {_kind(value)}")
    return found


def _holds_state(value: Any) -> bool:
    return (isinstance(value, Made) and not value.called) or bool(as_mapping(value))


def _is_state(value: Any) -> bool:
    if isinstance(value, Made) and not value.called and as_mapping(value) is None:
        return "_parameters" in (as_mapping(value.state) or {})
    return _has_tensors(as_mapping(value) or {})


def _has_tensors(mapping: Mapping[Any, Any]) -> bool:
    first = islice(mapping.values(), 16)
    return any(isinstance(v, Made) and v.called and str(v.maker) in REBUILDS for v in first)


def _plain(value: Any, depth: int) -> Any:
    """What is plain in what a pickle says, lists and mappings included, until it is too much."""
    left = _MOST

    def of(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or (isinstance(value, int) and value.bit_length() > 64):
            return None
        if isinstance(value, _PLAIN):
            return value
        mapping = as_mapping(value) if depth else None
        if mapping is not None:
            left -= len(mapping)
            inner = {str(key): of(item, depth - 1) for key, item in mapping.items()}
            return {key: item for key, item in inner.items() if item is not None} or None
        if isinstance(value, (list, tuple)) and len(value) <= 32 and depth:
            return [of(item, depth - 1) for item in value]
        return None

    return of(value, depth)


def _tensors_of(root: Made, pickled: Pickled) -> Iterator[tuple[str, TensorSource]]:
    """Walk a tree of modules, TorchScript's or pickled ones, as ``module.state_dict()`` does."""
    script = root.maker.module.split(".")[0] == "__torch__"
    left = _MOST

    def walk(module: Made, prefix: str, depth: int) -> Iterator[tuple[str, TensorSource]]:
        nonlocal left
        attributes = as_mapping(module.state) or {}
        tensors, modules = (_scripted if script else _pickled)(attributes)
        left -= 1 + len(attributes) + len(tensors) + len(modules)
        if left < 0 or depth > _DEEPEST:
            raise _without_end(pickled.title)
        for name, value in tensors.items():
            source = as_tensor(value, pickled.title)
            if source is not None:
                yield prefix + str(name), source
        for name, value in modules.items():
            if isinstance(value, Made):
                yield from walk(value, f"{prefix}{name}.", depth + 1)

    yield from walk(root, "", 0)


def _without_end(title: str) -> StaError:
    return StaError(f"{title} holds modules without end. Save its state dict as .safetensors.")


def _scripted(attributes: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """TorchScript keeps parameters, buffers and submodules alike as attributes."""
    called = {n: value for n, value in attributes.items() if isinstance(value, Made) and value.called}
    return called, {name: value for name, value in attributes.items() if name not in called}


def _pickled(attributes: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """A module's own dictionary; its transient buffers are left, as in its state dict."""
    transient = attributes.get("_non_persistent_buffers_set")
    if isinstance(transient, Made):  # a set, as older protocols write it
        transient = transient.args[0] if transient.args else ()
    names = transient if isinstance(transient, (set, frozenset, list, tuple)) else ()
    buffers = as_mapping(attributes.get("_buffers")) or {}
    left = {name for name in islice(names, len(buffers)) if isinstance(name, str)}
    parameters = as_mapping(attributes.get("_parameters")) or {}
    kept = {name: value for name, value in buffers.items() if name not in left}
    return {**parameters, **kept}, as_mapping(attributes.get("_modules")) or {}


def _kind(value: Any) -> str:
    return f"'{value.maker}'" if isinstance(value, Made) else type(value).__name__
