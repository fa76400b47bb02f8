"""Weights files by their names, and open ones."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Self

from sta_lightning.errors import MissingError, StaError
from sta_lightning.weights.foreign import foreign_file
from sta_lightning.weights.leased import LeasedMap

SAFETENSORS = ".safetensors"

PathLike = str | os.PathLike[str]


def existing(path: PathLike) -> Path:
    """The path of a weights file that is there and may be read.

    Raises:
        StaError: says which of these it is not.
    """
    file = Path(path)
    if file.is_dir():
        raise StaError(f"'{path}' is a folder. Give the weights file in it.")
    if not file.is_file():
        if (known := foreign_file(file)) is not None:
            raise StaError(f"'{path}' is {known}")
        where = "" if file.is_absolute() else f" in '{Path.cwd()}'"
        raise MissingError(f"there is no weights file '{path}'{where}. Check the path.")
    if not os.access(file, os.R_OK):
        raise StaError(f"'{path}' may not be read by this user. Change its permissions.")
    return file


def is_safetensors(path: PathLike) -> bool:
    """Whether a file is a safetensors file, by its ending or by how it begins.

    Raises:
        StaError: it is not there, or may not be read.
    """
    file = existing(path)
    if file.suffix == SAFETENSORS:
        return True
    with file.open("rb") as stream:
        start = stream.read(9)
    # The header's length, which must fit into the file, and the brace that its JSON begins with.
    return start[8:] == b"{" and 8 + int.from_bytes(start[:8], "little") <= file.stat().st_size


def not_safetensors(file: Path, reason: object) -> StaError:
    """The error for a file that its name calls safetensors and that is not."""
    known = foreign_file(file)
    if known is not None:
        return StaError(f"'{file}' is no safetensors file but {known}")
    with file.open("rb") as stream:
        start = stream.read(9)
    # A header of 640 bytes begins as a pickle does, but a brace follows its length.
    if (start[:1] == b"\x80" and start[8:] not in (b"", b"{")) or start[:2] == b"PK":
        return StaError(
            f"'{file}' is a pickled checkpoint under a name that ends in {SAFETENSORS}; it was not loaded. "
            "If you trust it, rename it to .pt: it is then read without running any code in it."
        )
    return StaError(
        f"'{file}' is not a whole safetensors file ({reason}). It may be truncated; copy or make it again."
    )


class OpenFile:
    """A weights file, open until it is closed; ``size`` is its length in bytes.

    Raises:
        StaError: names the file if it is missing, cannot be read, or is none by its name.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = existing(path)
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise StaError(f"'{path}' cannot be read: {error.strerror}.") from error
        self._opened = os.fstat(self._descriptor)
        self.size = self._opened.st_size
        self.mapped = LeasedMap(self._descriptor, self.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back; nothing can be read from it any more."""
        self.mapped.close()
        os.close(self._descriptor)

    def fileno(self) -> int:
        """The open file's number."""
        return self._descriptor

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the file's bytes from an offset.

        Raises:
            StaError: the file became shorter or cannot be read.
        """
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise StaError(f"'{self.path}' cannot be read: {error.strerror}.") from error
            if not got:
                self.check()
                raise StaError(f"'{self.path}' ends too early. Copy or make it again.")
            done += got

    def check(self) -> None:
        """Whether the file is as it was when it was opened, and still the one of that name.

        Raises:
            StaError: names the file.
        """
        now = os.fstat(self._descriptor)
        if self._is_as_opened(now):
            with contextlib.suppress(OSError):  # removed: what is open is whole all the same
                now = os.stat(self.path)  # another file may have taken its place
        if not self._is_as_opened(now):
            raise StaError(
                f"'{self.path}' was changed while it was read ({self.size} bytes before, {now.st_size} now). "
                "Nothing was written; start again when no other program changes it."
            )

    def _is_as_opened(self, now: os.stat_result) -> bool:
        return (now.st_size, now.st_mtime_ns) == (self._opened.st_size, self._opened.st_mtime_ns)
