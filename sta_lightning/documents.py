"""JSON and YAML from files: what would exhaust Python is a mistake in the document.

Brackets may be nested thousands deep, a mapping may stand in itself or a million times in another,
a number may have a million digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

_DEEPEST = 64
_MOST = 1_000_000  # values in all; what is named twice counts twice


def read_json(text: str, *, unique: bool = False) -> Any:
    """What a text in JSON says.

    Args:
        text: the text.
        unique: whether a name may stand in a table once alone; of two the last would be taken.

    Raises:
        ValueError: it is none, or cannot be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"'{name}' is named twice")
        found[name] = value
    return found


def read_yaml(text: str) -> Any:
    """What a text in YAML says.

    Raises:
        yaml.YAMLError: it is none, or cannot be read; see also :func:`check_values`.
    """
    import yaml  # a merge of files needs none

    try:
        content = yaml.safe_load(text)
        check_values(content)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except ValueError as error:  # too long a number, no date, or what no setting can be
        raise yaml.YAMLError(str(error)) from error
    return content


def check_values(content: Any, place: str = "") -> None:
    """Refuse values that no setting can have.

    Args:
        content: mappings and lists in each other, as YAML gives them, or as an option's value.
        place: what to call it in a message.

    Raises:
        ValueError: it is nested deeply or without end, is too much, or there is a whole number of
            more than 64 bits or a text with a null character; it says where.
    """
    _count(content, place, {}, 0)


def _count(value: Any, place: str, known: dict[int, int], depth: int) -> int:
    """How many values there are in a value."""
    what = place or "it"
    if isinstance(value, str | PurePath) and "\0" in str(value):
        raise ValueError(f"{what} has a null character, which no name or path can have")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError(
            f"{what} is a whole number of more than 64 bits (in YAML, a name of digits needs quotes)"
        )
    if not isinstance(value, Mapping | list | tuple):
        return 1
    if depth >= _DEEPEST:
        raise ValueError(f"{what} is nested more than {_DEEPEST} deep")
    if id(value) not in known:
        known[id(value)] = _MOST  # if it stands in itself
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        inside = f"{place}." if place else ""
        known[id(value)] = 1 + sum(
            _count(key, f"the key {key!r}", known, depth) + _count(item, f"{inside}{key}", known, depth + 1)
            for key, item in pairs
        )
    if known[id(value)] >= _MOST:
        raise ValueError(f"{what} holds itself, or more than {_MOST:,} values")
    return known[id(value)]
