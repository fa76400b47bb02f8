"""Folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from sta_lightning.errors import StaError


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place when the block ends well.

    Whatever ends the block otherwise, an interrupt included, removes the temporary folder. A folder
    cannot take the place of one that has something in it, so that there is no moment without
    either: such a one is refused.

    Args:
        path: the folder to make; folders above it that are missing are made.

    Yields:
        The temporary folder, empty.

    Raises:
        StaError: there is something at ``path`` already, or it cannot be written.
    """
    target = Path(os.path.abspath(path))
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise StaError(
            f"cannot write the folder '{path}': there is something already. Remove it, or choose another name."
        )
    temporary = target.parent / f".{target.name[:200]}.{os.getpid():x}{secrets.token_hex(4)}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise StaError(
            f"cannot write the folder '{path}': {error.strerror}. Choose a place that can be written."
        ) from error
    try:
        yield temporary
        for item in (*temporary.iterdir(), temporary):
            _flush(item)
        os.rename(temporary, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOTEMPTY, errno.EEXIST):
            raise StaError(
                f"cannot write the folder '{path}': {error.strerror}. Nothing was changed; make room and try again."
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    with contextlib.suppress(OSError):
        _flush(target.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
