"""Pickled checkpoints of every age: archives of torch and TorchScript, older files, pickles."""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sta_lightning.errors import StaError
from sta_lightning.weights.foreign import foreign_file
from sta_lightning.weights.formats.admission import module_trees, script_objects, state_dicts_only
from sta_lightning.weights.formats.pickled import (
    MOST_INSTRUCTIONS,
    Admission,
    DamagedPickleError,
    Stream,
    interpret,
)
from sta_lightning.weights.formats.storages import Storage, Storages, storage_dtype
from sta_lightning.weights.opened import OpenFile

PickledKind = Literal["torch archive", "TorchScript archive", "old torch file", "plain pickle"]

# What files of torch.save before version 1.6 begin with: two pickles of a number, then one of the
# machine, the content, the list of storages, and the storages' bytes.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of name and extra field
# What Python's zip reader raises for damaged archives, beside its own error.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(ValueError, KeyError, OverflowError, RuntimeError, NotImplementedError),
)
_LARGEST_PICKLE = 1 << 26  # bytes; that of a model with ten thousand tensors has 2 million


@dataclass(frozen=True)
class Pickled:
    """What a pickled checkpoint says: ``content`` comes from ``interpret``."""

    kind: PickledKind
    content: Any
    title: str


def open_pickled(path: Path, stack: ExitStack, *, unsafe_pickle: bool = False) -> Pickled:
    """Open a pickled checkpoint; no tensor is read yet, and no code in it is run.

    Args:
        path: the file.
        stack: what closes it.
        unsafe_pickle: whether objects of unknown classes may stand in it, as in a module saved
            whole. They become inert records all the same.

    Raises:
        StaError: names the file if it is missing, broken, or names more than it may.
    """
    file = stack.enter_context(OpenFile(path))
    storages = Storages(f"'{path}'", file)
    start = bytearray(min(4, file.size))
    file.read_into(memoryview(start), 0)
    try:
        if start[:2] == b"PK":
            return _zipped(path, file, storages, unsafe_pickle)
        admit = (module_trees if unsafe_pickle else state_dicts_only)(storages.title)
        return _unzipped(file, storages, admit)
    except DamagedPickleError as error:
        if (known := foreign_file(path)) is not None:
            raise StaError(f"{storages.title} is no checkpoint of PyTorch but {known}") from error
        raise StaError(
            f"{storages.title} is not a whole checkpoint ({error}). It may be truncated, as by a download that broke off, or of "
            "another format; copy or make it again."
        ) from error


def read_old(
    stream: Stream,
    size: int,
    storages: Storages,
    admit: Admission | None = None,
    *,
    most: int = MOST_INSTRUCTIONS,
) -> Any:
    """What a file of torch.save before version 1.6 says; the places of its storages are taken down.

    Args:
        stream: where it begins.
        size: of the stream, in bytes.
        storages: filled.
        admit: see ``interpret``; by default tensors and plain values are admitted.
        most: how many instructions each of its pickles may have.

    Raises:
        StaError: it names what is not admitted, or was written on a big-endian machine.
        DamagedPickleError: it is not whole.
    """
    admit = admit or state_dicts_only(storages.title)
    if any(interpret(stream, admit, most=most) != number for number in (_MAGIC, _PROTOCOL)):
        raise DamagedPickleError("it does not begin as a checkpoint does")
    system = interpret(stream, admit, most=most)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _big_endian(storages.title)
    widths: dict[str, int] = {}

    def persistent(reference: Any) -> Any:
        kind, *rest = reference
        if kind == "module" and len(rest) == 3:
            return rest[0]  # a class, with its source code, which stays unread
        if kind != "storage" or len(rest) != 5:
            raise ValueError("a reference to what is no storage")
        storage_class, key, _, _, view = rest
        dtype = storage_dtype(storage_class, storages.title)
        start = 0 if view is None else view[1]
        if not isinstance(key, str) or not isinstance(start, int) or not 0 <= start < 1 << 60:
            raise ValueError("a storage of no name or no place")
        widths[key] = 1 if dtype is None else dtype.itemsize
        return Storage(storages, key, dtype, start)

    content = interpret(stream, admit, persistent, most=most)
    keys = interpret(stream, admit, most=most)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DamagedPickleError("its list of storages is none")
    at = stream.tell()
    for key in keys:
        stream.seek(at)
        head = stream.read(8)
        length = int.from_bytes(head, "little") * widths.get(key, 1)
        if len(head) < 8 or at + 8 + length > size:
            raise DamagedPickleError("it ends before its tensors do")
        storages.places[key] = (at + 8, length)
        at += 8 + length
    return content


def _unzipped(file: OpenFile, storages: Storages, admit: Admission) -> Pickled:
    if not file.size:
        raise DamagedPickleError("it is empty")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        first = interpret(stream, admit)
        if isinstance(first, int) and first == _MAGIC:
            stream.seek(0)
            return Pickled("old torch file", read_old(stream, file.size, storages, admit), storages.title)
        return Pickled("plain pickle", first, storages.title)


def _zipped(path: Path, file: OpenFile, storages: Storages, unsafe_pickle: bool) -> Pickled:
    folder, entries, text = _directory(path, storages.title)
    inside = f"{folder}data/"
    for name, entry in entries.items():
        if name.startswith(inside):
            storages.places[name.removeprefix(inside)] = (_offset(file, entry), entry.file_size)
    script = f"{folder}constants.pkl" in entries
    admitted = script_objects if script else module_trees if unsafe_pickle else state_dicts_only

    def persistent(reference: Any) -> Storage:
        kind, storage_class, key, _, _ = reference
        if kind != "storage" or not isinstance(key, str):
            raise ValueError("a reference to what is no storage")
        return Storage(storages, key, storage_dtype(storage_class, storages.title))

    content = interpret(io.BytesIO(text), admitted(storages.title), persistent)
    return Pickled("TorchScript archive" if script else "torch archive", content, storages.title)


def _directory(path: Path, title: str) -> tuple[str, dict[str, zipfile.ZipInfo], bytes]:
    """The archive's folder, its entries by name, and the pickle that describes the tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            pickles = sorted((name for name in entries if name.split("/")[1:] == ["data.pkl"]), key=len)
            if not pickles:
                raise StaError(
                    f"{title} is a zip archive that holds no checkpoint (no data.pkl). If there is one in it, unpack it first."
                )
            folder = pickles[0].removesuffix("data.pkl")
            order = entries.get(f"{folder}byteorder")
            if order is not None and _text(archive, order) != b"little":
                raise _big_endian(title)
            return folder, entries, _text(archive, entries[pickles[0]])
    except _ZIP_ERRORS as error:
        raise DamagedPickleError(str(error) or type(error).__name__) from error


def _text(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of a small entry."""
    _check_stored(entry)
    if entry.file_size > _LARGEST_PICKLE:
        raise DamagedPickleError(f"its entry '{entry.filename}' has {entry.file_size} bytes")
    return archive.read(entry)


def _check_stored(entry: zipfile.ZipInfo) -> None:
    """Refuse what is compressed: a tiny file could ask for all of the memory."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise DamagedPickleError(f"its entry '{entry.filename}' is compressed, which torch never does")


def _big_endian(title: str) -> StaError:
    return StaError(
        f"{title} was written on a big-endian machine, which is not supported. Save it as .safetensors there."
    )


def _offset(file: OpenFile, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin in the file."""
    _check_stored(entry)
    head = bytearray(_LOCAL_HEADER.size)
    if entry.header_offset + len(head) > file.size:
        raise DamagedPickleError("it ends before its tensors do")
    file.read_into(memoryview(head), entry.header_offset)
    signature, name, extra = _LOCAL_HEADER.unpack(head)
    begin = entry.header_offset + len(head) + name + extra
    if signature != b"PK\x03\x04" or begin + entry.file_size > file.size:
        raise DamagedPickleError("its directory does not fit its content")
    return int(begin)
