"""The file format of torch.save before version 1.6: pickles in a row, then the storages' bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from sta_lightning.errors import StaError
from sta_lightning.weights.formats.admission import state_dicts_only
from sta_lightning.weights.formats.pickled import DamagedPickleError, interpret
from sta_lightning.weights.formats.storages import Shelf, Storage
from sta_lightning.weights.formats.symbols import Admission

MAGIC = 0x1950A86A20F9469CFC6C
"""What such a file's first pickle says."""
_PROTOCOL = 1001

DTypeOf = Callable[[Any, str], torch.dtype | None]


class Seekable(Protocol):
    """A stream whose place is known."""

    def read(self, size: int, /) -> bytes:
        """Bytes, fewer at the end."""

    def readline(self) -> bytes:
        """Bytes up to a line's end."""

    def tell(self) -> int:
        """How many bytes were read."""

    def seek(self, place: int, /) -> object:
        """Go on reading elsewhere."""


def no_reference(reference: Any) -> Any:
    """For pickles that refer to nothing outside of themselves.

    Raises:
        DamagedPickleError: always.
    """
    raise DamagedPickleError(f"a reference to {reference!r}, which is not in the file")


def read_storages(
    stream: Seekable, size: int, shelf: Shelf, dtype_of: DTypeOf, admit: Admission | None = None
) -> Any:
    """What a file of this format says; its storages are put on the shelf, unread.

    Args:
        stream: where it begins.
        size: of the stream, in bytes.
        shelf: told where the storages lie.
        dtype_of: tells the type of a storage class.
        admit: asked before every use of a global; by default tensors and plain values are admitted.

    Raises:
        StaError: it names what is not admitted, or was written on a big-endian machine.
        DamagedPickleError: it is not whole.
    """
    admit = admit or state_dicts_only(shelf.title)
    if interpret(stream, admit, no_reference) != MAGIC or interpret(stream, admit, no_reference) != _PROTOCOL:
        raise DamagedPickleError("it does not begin as a checkpoint does")
    system = interpret(stream, admit, no_reference)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise StaError(
            f"{shelf.title} was written on a big-endian machine, which is not supported. Save it as .safetensors there."
        )
    widths: dict[str, int] = {}

    def persistent(reference: Any) -> Any:
        kind, *rest = reference
        if kind == "module" and len(rest) == 3:
            return rest[0]  # a class, with its source code, which stays unread
        if kind != "storage" or len(rest) != 5:
            raise ValueError(f"a reference to a {kind}")
        storage_class, key, _, numel, view = rest
        dtype = dtype_of(storage_class, shelf.title)
        width = 1 if dtype is None else dtype.itemsize
        widths[key] = width
        start, count = (0, numel) if view is None else (view[1], view[2])
        if not isinstance(key, str) or not all(isinstance(n, int) and n >= 0 for n in (start, count)):
            raise ValueError("a storage of no size")
        return Storage(shelf, key, dtype, count, start)

    content = interpret(stream, admit, persistent)
    keys = interpret(stream, admit, no_reference)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DamagedPickleError("its list of storages is none")
    at = stream.tell()
    for key in keys:
        stream.seek(at)
        head = stream.read(8)
        length = int.from_bytes(head, "little") * widths.get(key, 1)
        if len(head) < 8 or at + 8 + length > size:
            raise DamagedPickleError("it ends before its tensors do")
        shelf.places[key] = (at + 8, length)
        at += 8 + length
    return content
