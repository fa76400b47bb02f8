"""SHA-256 of tensors, and of files, remembered: hashing takes longer than merging."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sta_lightning.cache import is_own, own_directory
from sta_lightning.documents import read_json
from sta_lightning.errors import StaError
from sta_lightning.weights.format import packed

_TICK = 50_000_000  # nanoseconds; clocks of 100 to 1000 ticks a second are usual


def tensor_digest(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the names, types, shapes and bytes of tensors, in the names' order.

    Two files with the same tensors have the same digest though their bytes differ (order, metadata,
    format), and so do tensors on other devices.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name}:{state[name].dtype}:{tuple(state[name].shape)};".encode())
        digest.update(packed(state[name]))
    return digest.hexdigest()


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits.

    It is remembered in the cache folder with the file's place, size, times and number on its
    device, and computed again as soon as one of them is another.

    Raises:
        StaError: names the file if it cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            known = _remembered(path, stream.fileno())
            if known is not None:
                return known
            before = _identity(stream.fileno())
            found = hashlib.file_digest(stream, "sha256").hexdigest()
            # Within one tick of the file system's clock a second writing leaves the times as they
            # are.
            settled = time.time_ns() - before[-1] > _TICK
            if settled and _identity(stream.fileno()) == before:
                _remember(path, before, found)
            return found
    except OSError as error:
        raise StaError(f"cannot read '{path}': {error.strerror}. Check the path.") from error


def remember_sha256(path: str | os.PathLike[str], digest: str) -> None:
    """Remember the hash of a file that was just written."""
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        _remember(path, _identity(stream.fileno()), digest)


def _identity(descriptor: int) -> list[int]:
    found = os.fstat(descriptor)
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _place(path: str | os.PathLike[str], *, make: bool = False) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    return own_directory("sha256", make=make) / f"{name}.json"


def _remembered(path: str | os.PathLike[str], descriptor: int) -> str | None:
    try:
        place = _place(path)
        content = read_json(place.read_text(encoding="utf-8")) if is_own(place) else {}
        if content["identity"] == _identity(descriptor) and len(content["sha256"]) == 64:
            return str(content["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not whole
    return None


def _remember(path: str | os.PathLike[str], identity: list[int], digest: str) -> None:
    # Where nothing can be kept, the file is hashed again next time.
    with contextlib.suppress(OSError):
        place = _place(path, make=True)
        descriptor, temporary = tempfile.mkstemp(dir=place.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"identity": identity, "sha256": digest}, stream)
        os.replace(temporary, place)
