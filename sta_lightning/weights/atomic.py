"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from sta_lightning.errors import StaError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOTEMPTY, errno.EEXIST}
_LONGEST_NAME = 255


class CannotWriteError(StaError):
    """A file or folder cannot be written; what was there is untouched."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, folder: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    The block writes the temporary file (it has the same suffix and exists already, empty);
    afterwards it is flushed to the disk and renamed, and the folder is flushed too. Whatever ends
    the block otherwise, an interrupt included, removes the temporary file and leaves an older file
    at ``path`` as it was. Killed at any moment, ``path`` is the old file or the new one, whole; the
    temporary file, whose name begins with a dot, is then removed when ``path`` is written next.

    Args:
        path: the file to write. Folders that are missing are made. A symbolic link is followed.
        folder: whether to write a folder of files instead. It cannot take the place of one that
            has something in it without a moment when neither is there: such a one is refused.

    Yields:
        The temporary path.

    Raises:
        CannotWriteError: ``path`` is a folder or a device, it is read-only, the folder cannot be
            made, or the disk is full.

    Example:
        >>> with atomic_path(tmp / "table.csv") as temporary:
        ...     _ = temporary.write_text("a,b")
        >>> (tmp / "table.csv").read_text()
        'a,b'
    """
    target = Path(os.path.abspath(path) if folder else os.path.realpath(path))
    (_check_folder if folder else _check_file)(target, path)
    token = f".{secrets.token_hex(8)}.tmp{target.suffix}"
    # A name may be at most 255 bytes long; the suffix stays last because some writers choose the
    # format by it.
    stem = target.stem.encode()[: max(0, _LONGEST_NAME - 1 - len(token.encode()))].decode(errors="ignore")
    temporary = target.parent / f".{stem}{token}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(
            target.parent, re.compile(rf"\.{re.escape(stem)}\.[0-9a-f]{{16}}\.tmp{re.escape(target.suffix)}")
        )
        held = _made(temporary, folder=folder)
    except OSError as error:
        raise CannotWriteError(
            f"cannot write '{path}': {error.strerror}. Choose a folder that can be written."
        ) from error
    try:
        yield temporary
        if not temporary.exists():
            raise CannotWriteError(f"cannot write '{path}': its temporary file was moved away.")
        for item in (*(temporary.iterdir() if folder else ()), temporary):
            _flush(item)
        if target.is_file():
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except StaError as error:
        # Of a writer inside, which knows the temporary name alone.
        raise StaError(str(error).replace(str(temporary), str(path))) from error
    except OSError as error:
        if error.errno in _FULL:
            raise CannotWriteError(
                f"cannot write '{path}': {error.strerror}. Nothing was changed; make room and try again."
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)
        os.close(held)
    # The rename itself must reach the disk. Not every system can flush a folder; what is in it is
    # whole all the same.
    with contextlib.suppress(OSError):
        _flush(target.parent)


def _made(temporary: Path, *, folder: bool) -> int:
    """Make a temporary file or folder; the descriptor holds it as long as this process lives."""
    while True:
        # Opened rather than made by tempfile: the permissions are then those that the user's umask
        # asks for.
        if folder:
            temporary.mkdir()
        flags = os.O_RDONLY if folder else os.O_CREAT | os.O_EXCL | os.O_WRONLY
        held = os.open(temporary, flags, 0o666)
        _lock(held)
        if temporary.exists():
            return held
        os.close(held)  # taken for one that was left, before it was held


def _remove_left(folder: Path, name: re.Pattern[str]) -> None:
    """Remove the temporary files and folders of such names that no process holds."""
    for path in folder.iterdir():
        if name.fullmatch(path.name):
            with contextlib.suppress(OSError):
                held = os.open(path, os.O_RDONLY if path.is_dir() else os.O_WRONLY)
                try:
                    if _lock(held, wait=False):
                        _remove(path)
                finally:
                    os.close(held)


def _lock(descriptor: int, *, wait: bool = True) -> bool:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):  # held by another, or a system without locks
        return False
    return True


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _check_file(target: Path, asked: str | os.PathLike[str]) -> None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotWriteError(f"cannot write '{asked}': {error.strerror}.") from error
    if stat.S_ISDIR(mode):
        raise CannotWriteError(f"cannot write '{asked}': it is a folder. Give the name of a file.")
    if not stat.S_ISREG(mode):
        raise CannotWriteError(
            f"cannot write '{asked}': it is not an ordinary file. Give the name of a file."
        )
    if not os.access(target, os.W_OK):
        raise CannotWriteError(
            f"cannot write '{asked}': the file there is read-only. Remove it or choose another name."
        )


def _check_folder(target: Path, asked: str | os.PathLike[str]) -> None:
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise CannotWriteError(
            f"cannot write the folder '{asked}': there is something already. Remove it, or choose another name."
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
