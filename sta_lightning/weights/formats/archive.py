"""Opening pickled checkpoints of every age: torch's archives, TorchScript's, the format before them, plain pickles."""

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
from sta_lightning.weights.formats.admission import module_trees, script_objects, state_dicts_only
from sta_lightning.weights.formats.legacy import MAGIC, no_reference, read_storages
from sta_lightning.weights.formats.pickled import DamagedPickleError, interpret
from sta_lightning.weights.formats.rebuild import storage_dtype
from sta_lightning.weights.formats.storages import FileBytes, Shelf, Storage
from sta_lightning.weights.formats.symbols import Admission

PickledKind = Literal["torch archive", "TorchScript archive", "old torch file", "plain pickle"]

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of name and extra field
# What Python's zip reader raises for damaged archives, beside its own error.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(ValueError, KeyError, OverflowError, RuntimeError, NotImplementedError),
)
_LARGEST_PICKLE = 1 << 30  # bytes; that of a model with a million tensors has less


@dataclass(frozen=True)
class Pickled:
    """What a pickled checkpoint says.

    Attributes:
        kind: what sort of file it is.
        content: from :func:`~sta_lightning.weights.formats.pickled.interpret`.
        title: what to call the file in a message.
    """

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
    title = f"'{path}'"
    file = stack.enter_context(FileBytes(path))
    start = bytearray(min(4, file.size))
    file.read_into(memoryview(start), 0)
    try:
        if start[:2] == b"PK":
            return _zipped(path, file, title, unsafe_pickle)
        admit = module_trees(title) if unsafe_pickle else state_dicts_only(title)
        return _unzipped(file, title, admit)
    except DamagedPickleError as error:
        raise StaError(
            f"{title} is not a whole checkpoint ({error}). It may be truncated, as by a download that broke off, or of "
            "another format; copy or make it again."
        ) from error


def _unzipped(file: FileBytes, title: str, admit: Admission) -> Pickled:
    if not file.size:
        raise DamagedPickleError("it is empty")
    shelf = Shelf(title, file)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        first = interpret(stream, admit, no_reference)
        if isinstance(first, int) and first == MAGIC:
            stream.seek(0)
            content = read_storages(stream, file.size, shelf, storage_dtype, admit)
            return Pickled("old torch file", content, title)
        return Pickled("plain pickle", first, title)


def _zipped(path: Path, file: FileBytes, title: str, unsafe_pickle: bool) -> Pickled:
    folder, entries, text = _directory(path, title)
    script = f"{folder}constants.pkl" in entries
    shelf = Shelf(title, file)
    storages = f"{folder}data/"
    for name, entry in entries.items():
        if name.startswith(storages):
            shelf.places[name.removeprefix(storages)] = (_offset(file, entry), entry.file_size)
    admitted = script_objects if script else module_trees if unsafe_pickle else state_dicts_only
    admit = admitted(title)

    def persistent(reference: Any) -> Storage:
        kind, storage_class, key, _, numel = reference
        if kind != "storage" or not isinstance(key, str) or not isinstance(numel, int):
            raise ValueError(f"a reference to a {kind}")
        return Storage(shelf, key, storage_dtype(storage_class, title), numel)

    content = interpret(io.BytesIO(text), admit, persistent)
    return Pickled("TorchScript archive" if script else "torch archive", content, title)


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
            if order is not None and archive.read(order) != b"little":
                raise StaError(
                    f"{title} was written on a big-endian machine, which is not supported. Save it as .safetensors there."
                )
            if entries[pickles[0]].file_size > _LARGEST_PICKLE:
                raise DamagedPickleError(f"its table of tensors has {entries[pickles[0]].file_size} bytes")
            return folder, entries, archive.read(pickles[0])
    except _ZIP_ERRORS as error:
        raise DamagedPickleError(str(error) or type(error).__name__) from error


def _offset(file: FileBytes, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin in the file."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise DamagedPickleError(f"its entry '{entry.filename}' is compressed, which torch never does")
    head = bytearray(_LOCAL_HEADER.size)
    if entry.header_offset + len(head) > file.size:
        raise DamagedPickleError("it ends before its tensors do")
    file.read_into(memoryview(head), entry.header_offset)
    signature, name, extra = _LOCAL_HEADER.unpack(head)
    begin = entry.header_offset + len(head) + name + extra
    if signature != b"PK\x03\x04" or begin + entry.file_size > file.size:
        raise DamagedPickleError("its directory does not fit its content")
    return int(begin)
