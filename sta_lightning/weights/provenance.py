"""What a weights file says about where it comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from sta_lightning import __version__
from sta_lightning.arithmetic.workers import Workers, usable_threads
from sta_lightning.documents import read_json
from sta_lightning.errors import StaError
from sta_lightning.weights.hashes import sha256

PACKAGE = "sta_lightning"
"""What the metadata's ``package`` of this package's files says."""


def decoded(metadata: Mapping[str, str], key: str) -> Any:
    """An entry of the metadata that is JSON, else its text; ``None`` where it is missing."""
    text = metadata.get(key)
    if text is None:
        return None
    try:
        return read_json(text)
    except ValueError:
        return text


def provenance(
    kind: str, settings: Mapping[str, object], sources: Mapping[str, str | os.PathLike[str]]
) -> dict[str, str]:
    """Metadata for :func:`~sta_lightning.weights.save_weights`.

    It holds no date and no folder, so that the same merge gives the same bytes on two machines.

    Args:
        kind: what the file is and the method that made it, for example ``"fused:sta"`` or
            ``"importance:lp"``.
        settings: the method's settings; numbers, text, booleans, ``None``, lists and mappings of
            these. Of a path only the file name is kept.
        sources: role -> file that was read, for example ``{"pretrained": ..., "finetuned/mnist":
            ...}``.

    Returns:
        ``format`` (``"pt"``), ``package``, ``version``, ``kind``, ``settings`` (JSON) and
        ``sources`` (JSON: role -> file name and SHA-256).

    Raises:
        StaError: if a source cannot be read or a setting cannot be written as JSON.
    """
    paths = list(dict.fromkeys(sources.values()))
    with Workers(usable_threads()) as workers:  # a file that nobody has hashed takes longer than its merge
        digests = dict(zip(paths, workers.map(sha256, paths, apart=True), strict=True))
    described = {role: {"file": Path(path).name, "sha256": digests[path]} for role, path in sources.items()}
    return {
        "format": "pt",
        "package": PACKAGE,
        "version": __version__,
        "kind": kind,
        "settings": _json(settings),
        "sources": _json(described),
    }


def _json(value: object) -> str:
    try:
        return json.dumps(
            value, sort_keys=True, ensure_ascii=False, allow_nan=False, default=_plain, separators=(",", ":")
        )
    except (TypeError, ValueError) as error:
        raise StaError(f"the settings cannot be recorded as JSON: {error}.") from error


def _plain(value: object) -> object:
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}")
