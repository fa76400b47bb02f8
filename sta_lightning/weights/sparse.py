"""Masked task vectors on disk: a bit for every entry, and the values that the mask keeps."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sta_lightning.arithmetic.sources import TensorSource
from sta_lightning.arithmetic.workers import Alone
from sta_lightning.documents import read_json
from sta_lightning.errors import StaError, listed
from sta_lightning.weights.opened import PathLike
from sta_lightning.weights.streamed import FileSink, streamed
from sta_lightning.weights.tensor_file import FileTensor, TensorFile

KIND = "vector"
"""What the metadata's ``kind`` of a masked task vector begins with."""

_MASK, _VALUES = "mask.", "values."
_SHAPES = "shapes"
_STEP = 1 << 16  # entries between two places whose number of kept entries is remembered


class SparseTensor(TensorSource):
    """One tensor of a masked task vector."""

    def __init__(self, shape: torch.Size, mask: FileTensor, values: FileTensor) -> None:
        self.shape, self.dtype = shape, values.dtype
        self._mask, self._values = mask, values
        self._before: npt.NDArray[np.int64] | None = None
        self._lock = threading.Lock()

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        """Entries of the flattened tensor, 0 where the mask keeps nothing.

        Raises:
            StaError: if mask and values do not belong together, or the file became shorter.
        """
        first = piece.start // _STEP
        kept = self._bits(first * _STEP, piece.stop)
        ahead = piece.start - first * _STEP
        start = int(self._counts()[first]) + int(kept[:ahead].sum())
        mine = torch.from_numpy(kept[ahead:].astype(bool))
        values = self._values.read(slice(start, start + int(mine.sum())), dtype)
        result = torch.zeros(piece.stop - piece.start, dtype=dtype)
        result[mine] = values
        return result

    def checks(self) -> Iterator[Callable[[], None]]:
        """Ask the file."""
        yield from self._mask.checks()

    def _bits(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The mask from an entry whose number is a multiple of 8."""
        packed = self._mask.read(slice(start // 8, -(-stop // 8)), torch.uint8).numpy()
        return np.unpackbits(packed, count=stop - start, bitorder="little")

    def _counts(self) -> npt.NDArray[np.int64]:
        """How many entries are kept before every multiple of the step."""
        with self._lock:
            if self._before is None:
                size = self.shape.numel()
                counts = [int(self._bits(at, min(at + _STEP, size)).sum()) for at in range(0, size, _STEP)]
                if sum(counts) != self._values.shape.numel():
                    raise StaError(
                        f"'{self._mask.file.path}' has {self._values.shape.numel()} values for a mask that keeps "
                        f"{sum(counts)} entries. Make it again."
                    )
                self._before = np.cumsum([0, *counts], dtype=np.int64)
            return self._before


def open_vector(path: PathLike, stack: ExitStack) -> tuple[dict[str, SparseTensor], dict[str, str]]:
    """The tensors of a masked task vector's file by name, unread, and its metadata.

    Raises:
        StaError: names the file if it is missing, broken, or no masked task vector.
    """
    file = stack.enter_context(TensorFile(path))
    if not file.metadata.get("kind", "").startswith(KIND) or _SHAPES not in file.metadata:
        raise StaError(
            f"'{path}' is no masked task vector. Give a file that `sta merge` wrote into model.vectors."
        )
    found: dict[str, SparseTensor] = {}
    try:
        for name, shape in read_json(file.metadata[_SHAPES]).items():
            size = torch.Size(shape)
            mask, values = file[_MASK + name], file[_VALUES + name]
            if mask.shape.numel() != -(-size.numel() // 8) or mask.dtype != torch.uint8:
                raise ValueError(f"the mask of '{name}' is not of its size")
            found[name] = SparseTensor(size, mask, values)
    except StaError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StaError(f"'{path}' is a damaged masked task vector ({error}). Make it again.") from error
    return found, file.metadata


class VectorSink:
    """Takes the masks and values of one task, tensor after tensor and piece after piece."""

    def __init__(self, sink: FileSink) -> None:
        self._sink = sink
        self._written: dict[str, int] = {}

    def write(self, name: str, start: int, mask: Tensor, values: Tensor) -> None:
        """Keep a piece that begins at a multiple of 8: its mask (bool) and the entries it keeps."""
        packed = np.packbits(mask.cpu().numpy(), bitorder="little")
        self._sink.write(_MASK + name, start // 8, torch.from_numpy(packed))
        done = self._written.get(name, 0)
        self._sink.write(_VALUES + name, done, values.to(self._sink.dtype(_VALUES + name)))
        self._written[name] = done + values.numel()


@contextmanager
def vector_files(
    paths: Mapping[str, PathLike],
    shapes: Mapping[str, torch.Size],
    kept: Mapping[str, Mapping[str, int]],
    metadata: Mapping[str, Mapping[str, str]],
    dtype: torch.dtype,
) -> Iterator[dict[str, VectorSink]]:
    """Files of masked task vectors, which take their places together when the block has ended well.

    Args:
        paths: task -> the file to write.
        shapes: tensor name -> shape.
        kept: task -> tensor name -> how many entries its mask keeps.
        metadata: task -> text -> text.
        dtype: type of the values.

    Raises:
        StaError: if a file cannot be written; older files are then untouched.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise StaError(
            f"masked task vectors are kept as {listed(('float32', 'bfloat16', 'float16'))}, not as {dtype}."
        )
    text = json.dumps({name: list(shape) for name, shape in shapes.items()})
    with ExitStack() as stack:
        sinks: dict[str, VectorSink] = {}
        for task, path in paths.items():
            planned: dict[str, tuple[torch.Size, torch.dtype]] = {}
            for name, shape in shapes.items():
                planned[_MASK + name] = (torch.Size([-(-shape.numel() // 8)]), torch.uint8)
                planned[_VALUES + name] = (torch.Size([kept[task][name]]), dtype)
            sink = stack.enter_context(streamed(path, planned, {**metadata[task], _SHAPES: text}, Alone()))
            sinks[task] = VectorSink(sink)
        yield sinks
