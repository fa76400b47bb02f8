"""The state dict in what a pickled checkpoint says, and the plain facts beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sta_lightning.arithmetic.sources import TensorSource
from sta_lightning.errors import StaError, listed
from sta_lightning.weights.formats.archive import Pickled
from sta_lightning.weights.formats.rebuild import as_mapping, as_tensor
from sta_lightning.weights.formats.symbols import Made

# Where training codes put the state dict inside a checkpoint; Lightning's name first.
_STATE_KEYS = ("state_dict", "model_state_dict", "model")
# What a training needs to go on, and nobody wants to read.
_BULKY = (
    "optimizer_states",
    "optimizer",
    "lr_schedulers",
    "scheduler",
    "scaler",
    "loops",
    "callbacks",
    "rng_state",
)
_DEEPEST, _MOST = 64, 1_000_000  # of modules in each other, of modules in all
_PLAIN = (str, int, float, bool, type(None))


def state_of(pickled: Pickled) -> dict[str, TensorSource]:
    """The tensors of a checkpoint by name, unread.

    Args:
        pickled: a state dict, a checkpoint around one, a module saved whole, or a TorchScript
            module.

    Raises:
        StaError: there is no state dict, or something in it is no tensor.
    """
    found = pickled.content
    outer = as_mapping(found)
    if outer is not None:
        inner = [outer[key] for key in _STATE_KEYS if _holds_state(outer.get(key))]
        found = inner[0] if inner else found
    if isinstance(found, Made) and as_mapping(found) is None:
        return dict(_tensors_of(found, pickled))
    mapping = as_mapping(found)
    if not mapping:
        raise StaError(
            f"{pickled.title} holds no state dict (a {_kind(found)}, nothing under {listed(_STATE_KEYS)}). "
            "Save module.state_dict()."
        )
    state = {name: as_tensor(value, pickled.title) for name, value in mapping.items()}
    odd = [
        str(name)
        for name, source in state.items()
        if not isinstance(name, str) or (source is None and not name.endswith("_extra_state"))
    ]
    if odd:
        raise StaError(
            f"{pickled.title} holds entries that are no tensors: {listed(odd)}. Save its state dict alone."
        )
    return {name: source for name, source in state.items() if source is not None}


def facts_of(pickled: Pickled) -> dict[str, Any]:
    """The plain values beside a checkpoint's state dict: epoch, version, settings; none for a bare state dict."""
    outer = as_mapping(pickled.content)
    if outer is None:
        made = isinstance(pickled.content, Made)
        return {"class": str(pickled.content.maker)} if made else {}
    if not any(_holds_state(outer.get(key)) for key in _STATE_KEYS):
        return {}
    facts = {str(key): _plain(value) for key, value in outer.items() if key not in (*_STATE_KEYS, *_BULKY)}
    return {key: value for key, value in facts.items() if value is not None}


def _holds_state(value: Any) -> bool:
    return (isinstance(value, Made) and not value.called) or bool(as_mapping(value))


def _plain(value: Any, depth: int = 4) -> Any:
    """A value if it is plain throughout, lists and mappings included; nothing else is kept."""
    if isinstance(value, _PLAIN):
        return value
    mapping = as_mapping(value)
    if depth and mapping is not None:
        inner = {str(key): _plain(item, depth - 1) for key, item in mapping.items()}
        return {key: item for key, item in inner.items() if item is not None} or None
    if depth and isinstance(value, (list, tuple)) and len(value) <= 32:
        return [_plain(item, depth - 1) for item in value]
    return None


def _tensors_of(root: Made, pickled: Pickled) -> Iterator[tuple[str, TensorSource]]:
    """Walk a tree of modules, TorchScript's or pickled ones, as ``module.state_dict()`` does."""
    script = root.maker.module.split(".")[0] == "__torch__"
    left = _MOST

    def walk(module: Made, prefix: str, depth: int) -> Iterator[tuple[str, TensorSource]]:
        nonlocal left
        left -= 1
        attributes = as_mapping(module.state)
        if left < 0 or depth > _DEEPEST:
            raise StaError(f"{pickled.title} holds modules without end. Save its state dict as .safetensors.")
        if attributes is None:
            return
        tensors, modules = (_scripted if script else _pickled)(attributes)
        for name, value in tensors.items():
            source = as_tensor(value, pickled.title)
            if source is not None:
                yield prefix + str(name), source
        for name, value in modules.items():
            if isinstance(value, Made):
                yield from walk(value, f"{prefix}{name}.", depth + 1)

    yield from walk(root, "", 0)


def _scripted(attributes: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """TorchScript keeps parameters, buffers and submodules alike as attributes."""
    called = {name for name, value in attributes.items() if isinstance(value, Made) and value.called}
    return (
        {name: value for name, value in attributes.items() if name in called},
        {name: value for name, value in attributes.items() if name not in called},
    )


def _pickled(attributes: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """A module's own dictionary; its transient buffers are left, as in its state dict."""
    transient = attributes.get("_non_persistent_buffers_set")
    if isinstance(transient, Made):  # a set, as older protocols write it
        transient = transient.args[0] if transient.args else ()
    left = transient if isinstance(transient, (set, frozenset, list, tuple)) else ()
    buffers = as_mapping(attributes.get("_buffers")) or {}
    buffers = {name: value for name, value in buffers.items() if name not in left}
    parameters = as_mapping(attributes.get("_parameters")) or {}
    return {**parameters, **buffers}, as_mapping(attributes.get("_modules")) or {}


def _kind(value: Any) -> str:
    return f"'{value.maker}'" if isinstance(value, Made) else type(value).__name__
