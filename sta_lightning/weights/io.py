"""Weights in and out: safetensors both ways, pickled checkpoints in, with nothing executed."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sta_lightning.arithmetic.checks import check_dtype
from sta_lightning.errors import StaError, listed
from sta_lightning.weights.atomic import atomic_path
from sta_lightning.weights.format import write
from sta_lightning.weights.hashes import remember_sha256

SAFETENSORS = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# Where the usual training codes put the state dict inside a checkpoint; Lightning's name first.
_STATE_KEYS = ("state_dict", "model_state_dict", "model")

PathLike = str | os.PathLike[str]


def load_weights(path: PathLike, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Read a state dict from a file, onto the CPU.

    Args:
        path: a ``.safetensors`` file, or a ``.ckpt``, ``.pt``, ``.pth`` or ``.bin`` checkpoint. The
            latter are read with ``weights_only=True``, so no code in them is run; the state dict
            may lie under ``state_dict`` (Lightning), ``model_state_dict`` or ``model``.
        dtype: floating-point type to convert floating-point tensors to; ``None`` keeps what is
            stored.

    Returns:
        Tensor name -> tensor.

    Raises:
        StaError: names the file if it is missing, truncated, of another format, or holds more than
            tensors.
    """
    check_dtype(dtype)
    file = existing(path)
    if file.suffix == SAFETENSORS:
        with _opened(file) as source:
            try:
                state = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 (no mapping)
            except (SafetensorError, OSError, RuntimeError) as error:
                raise not_safetensors(file, error) from error
    else:
        state = _unpickled(file)
    if dtype is None:
        return state
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


def read_metadata(path: PathLike) -> dict[str, str]:
    """The metadata that a safetensors file carries.

    Args:
        path: a ``.safetensors`` file.

    Returns:
        Text -> text; empty if the file has none.

    Raises:
        StaError: if the file is missing, broken or of another format.
    """
    file = existing(path)
    if file.suffix != SAFETENSORS:
        raise StaError(f"'{path}' carries no metadata: only {SAFETENSORS} files do.")
    with _opened(file) as source:
        return dict(source.metadata() or {})


def save_weights(
    path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    The same tensors and metadata give the same bytes.

    Args:
        path: the file to write, ending in ``.safetensors``; missing folders are made.
        tensors: name -> tensor, on any device; tensors that share memory are written one by one.
        metadata: text -> text, usually from :func:`sta_lightning.weights.provenance`.

    Raises:
        StaError: if the name has another ending, a tensor or the metadata cannot be held, or the
            file cannot be written. An older file at ``path`` is then untouched.
    """
    if Path(path).suffix != SAFETENSORS:
        raise StaError(f"cannot save weights as '{path}': the name must end in {SAFETENSORS}.")
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        hashed = _Hashed(stream)
        write(hashed, tensors, metadata or {})
    remember_sha256(path, hashed.digest.hexdigest())


class _Hashed:
    """A stream that knows the hash of what went through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self._stream.write(data)


def existing(path: PathLike) -> Path:
    """The path of a weights file that is there, may be read, and has a known ending.

    Raises:
        StaError: says which of these it is not.
    """
    file = Path(path)
    if file.is_dir():
        raise StaError(f"'{path}' is a folder. Give the weights file in it.")
    if not file.is_file():
        raise StaError(f"there is no weights file '{path}'{_here(file)}. Check the path.")
    if file.suffix not in (SAFETENSORS, *PICKLES):
        raise StaError(
            f"'{path}' has an unknown ending '{file.suffix}'. Weights are read from "
            f"{listed((SAFETENSORS, *PICKLES))}."
        )
    if not os.access(file, os.R_OK):
        raise StaError(f"'{path}' may not be read by this user. Change its permissions.")
    return file


def _here(file: Path) -> str:
    return "" if file.is_absolute() else f" in '{Path.cwd()}'"


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError, RuntimeError) as error:
        raise not_safetensors(file, error) from error


def fill(descriptor: int, buffer: memoryview, offset: int, path: PathLike, check: Callable[[], None]) -> None:
    """Fill a buffer with a file's bytes from an offset.

    Args:
        descriptor: the open file.
        buffer: what is filled, whole.
        offset: where in the file its bytes begin.
        path: what to call the file in a message.
        check: raises if the file has changed since it was opened.

    Raises:
        StaError: the file became shorter or cannot be read.
    """
    done = 0
    while done < len(buffer):
        try:
            got = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            raise StaError(f"'{path}' cannot be read: {error.strerror}.") from error
        if not got:
            check()
            raise StaError(f"'{path}' ends too early. Copy or make it again.")
        done += got


def not_safetensors(file: Path, reason: object) -> StaError:
    """The error for a file that its name calls safetensors and that is not."""
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


def _unpickled(file: Path) -> dict[str, Tensor]:
    if _is_torchscript(file):
        raise StaError(
            f"'{file}' is a TorchScript archive, a program and not a checkpoint. `sta convert {file.name} OUT --to "
            "safetensors` takes its weights out without running it."
        )
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # What torch says here ends in the advice to load the file all the same; only the culprit's
        # name is of use.
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        found = f" (it asks for '{culprit[1]}')" if culprit else ""
        raise StaError(
            f"'{file}' holds more than tensors and plain values{found}, or is no checkpoint; it was not loaded, "
            f"because loading it could run code. Save its state dict alone, best as {SAFETENSORS}."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds for damaged archives, none of them documented
        raise StaError(
            f"'{file}' cannot be read as a checkpoint ({_first_line(error)}). It may be truncated; copy or make it "
            "again."
        ) from error
    state = content
    for key in _STATE_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            state = content[key]
            break
    if not isinstance(state, Mapping) or not state:
        raise StaError(
            f"'{file}' holds no state dict (a {type(state).__name__}, nothing under {listed(_STATE_KEYS)}). "
            "Save module.state_dict()."
        )
    odd = [
        str(name)
        for name, value in state.items()
        if not isinstance(value, Tensor) or not isinstance(name, str)
    ]
    if odd:
        raise StaError(
            f"'{file}' holds entries that are no tensors: {listed(odd)}. Save its state dict alone."
        )
    return dict(state)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _is_torchscript(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False
