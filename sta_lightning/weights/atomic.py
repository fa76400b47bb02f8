"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
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
    at ``path`` as it was. Killed at any moment, ``path`` is the old file or the new one, whole; a
    temporary file whose name begins with a dot may then be left.

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
    token = f".{os.getpid():x}{secrets.token_hex(8)}.tmp{target.suffix}"
    # A name may be at most 255 bytes long; the suffix stays last because some writers choose the
    # format by it.
    stem = target.stem.encode()[: max(0, _LONGEST_NAME - 1 - len(token.encode()))].decode(errors="ignore")
    temporary = target.parent / f".{stem}{token}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Opened rather than made by tempfile: the permissions are then those that the user's umask
        # asks for.
        if folder:
            temporary.mkdir()
        else:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
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
            shutil.rmtree(temporary) if folder else temporary.unlink(missing_ok=True)
    # The rename itself must reach the disk. Not every system can flush a folder; what is in it is
    # whole all the same.
    with contextlib.suppress(OSError):
        _flush(target.parent)


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
