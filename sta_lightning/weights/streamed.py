"""A safetensors file written a piece at a time, by one process or several."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sta_lightning.arithmetic.workers import Processes, together
from sta_lightning.errors import StaError
from sta_lightning.weights.atomic import atomic_path
from sta_lightning.weights.format import check_writable, header_of, packed
from sta_lightning.weights.opened import SAFETENSORS, PathLike

Planned = Mapping[str, tuple[torch.Size, torch.dtype]]
"""Tensor name -> shape and type."""


class FileSink:
    """A file's tensors as a :class:`~sta_lightning.arithmetic.run.Sink`.

    Args:
        path: what to call the file in a message.
        places: name in the file -> the open file, where the tensor begins in it, and its type.
        prefix: what stands in front of the names in the file.
        shared: further name in the file -> name: written along with it.
    """

    def __init__(
        self,
        path: PathLike,
        places: Mapping[str, tuple[int, int, torch.dtype]],
        prefix: str = "",
        shared: Mapping[str, str] | None = None,
    ) -> None:
        self._path, self.places, self._prefix, self._shared = path, places, prefix, shared or {}

    def under(self, prefix: str) -> FileSink:
        """The tensors whose names begin so, by the rest of their names."""
        return FileSink(self._path, self.places, self._prefix + prefix, self._shared)

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is kept."""
        return self.places[self._prefix + name][2]

    def address(self, name: str) -> int | None:
        """Nowhere: on a full disk a map would end the process, where a write says so."""
        return None

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Keep some entries.

        Raises:
            StaError: if they cannot be written, as on a full disk.
        """
        own, content = self._prefix + name, packed(values)
        try:
            for place in (own, *(further for further, kept in self._shared.items() if kept == own)):
                descriptor, begin, _ = self.places[place]
                rest, at = content, begin + start * values.element_size()
                while rest:
                    done = os.pwrite(descriptor, rest, at)
                    rest, at = rest[done:], at + done
        except OSError as error:
            raise StaError(
                f"cannot write '{self._path}': {error.strerror}. Nothing was changed; make room and try again."
            ) from error


@contextlib.contextmanager
def streamed(
    path: PathLike,
    planned: Planned,
    metadata: Mapping[str, str],
    processes: Processes,
    shared: Mapping[str, str] | None = None,
) -> Iterator[FileSink]:
    """A safetensors file, put at ``path`` when the block has ended well on every process.

    Args:
        path: the file to write, ending in ``.safetensors``; missing folders are made.
        planned: the tensors that the block writes, whole.
        metadata: text -> text.
        processes: who writes together; all of them see the folder of ``path``.
        shared: further names of planned tensors -> their names, which are written too.

    Yields:
        Where to write.

    Raises:
        StaError: if the file cannot be held or written. An older file at ``path`` is then
            untouched.
    """
    if Path(path).suffix != SAFETENSORS:
        raise StaError(f"cannot save weights as '{path}': the name must end in {SAFETENSORS}.")
    written = {**planned, **{further: planned[name] for further, name in (shared or {}).items()}}
    shapes = {
        name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in written.items()
    }
    check_writable(shapes, metadata, meta=True)
    header, order = header_of(shapes, metadata)
    places, at = {}, len(header)
    for name in order:
        places[name] = (at, shapes[name].dtype)
        at += shapes[name].nbytes
    with contextlib.ExitStack() as stack:

        def make() -> str:
            if processes.rank:
                return ""
            temporary = stack.enter_context(atomic_path(path))
            with temporary.open("wb") as stream:
                stream.write(header)
                stream.truncate(at)
            return str(temporary)

        temporary = Path(together(processes, make)[0])
        descriptor = together(processes, lambda: _opened(temporary))[processes.rank]
        try:
            yield FileSink(
                path, {name: (descriptor, *place) for name, place in places.items()}, shared=shared
            )
        finally:
            os.close(descriptor)
        # The first process renames the file only after the others have written what is theirs, and
        # none goes on before it is there.
        together(processes, lambda: None)
        together(processes, stack.pop_all().close)


@contextlib.contextmanager
def sharded(
    folder: Path, planned: Planned, metadata: Mapping[str, str], processes: Processes, limit: int
) -> Iterator[FileSink]:
    """:func:`streamed` into a folder, as transformers names files: one, or shards and their table.

    Args:
        folder: where to; it is there.
        planned: see there.
        metadata: see there; every shard has it.
        processes: see there.
        limit: bytes of tensors in a shard; a tensor that is larger has one of its own.

    Raises:
        StaError: see there.
    """
    shards: list[dict[str, tuple[torch.Size, torch.dtype]]] = [{}]
    sizes = {name: shape.numel() * dtype.itemsize for name, (shape, dtype) in planned.items()}
    room = limit
    for name, plan in planned.items():
        if sizes[name] > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = plan
        room -= sizes[name]
    count = len(shards)
    names = [
        f"model-{number:05}-of-{count:05}{SAFETENSORS}" if count > 1 else f"model{SAFETENSORS}"
        for number in range(1, count + 1)
    ]
    with contextlib.ExitStack() as stack:
        places: dict[str, tuple[int, int, torch.dtype]] = {}
        for file, shard in zip(names, shards, strict=True):
            places |= stack.enter_context(streamed(folder / file, shard, metadata, processes)).places
        yield FileSink(folder, places)
    if count > 1 and processes.rank == 0:
        where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        table = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        text = json.dumps(table, indent=2, ensure_ascii=False) + "\n"
        (folder / f"model{SAFETENSORS}.index.json").write_text(text, encoding="utf-8")


def _opened(temporary: Path) -> int:
    try:
        return os.open(temporary, os.O_WRONLY)
    except FileNotFoundError as error:
        raise StaError(
            f"the folder '{temporary.parent}' is not the same on all processes. Write to a folder that all machines share."
        ) from error
