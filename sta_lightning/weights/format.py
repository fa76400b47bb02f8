"""Writing the safetensors format: streamed, and the same bytes for the same content.

The library's own writer orders the metadata by a random hash, holds the whole file in memory once
more, and refuses tensors that share memory. Reading is the library's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from sta_lightning.errors import StaError, listed

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {text: dtype for dtype, text in _NAMES.items()}
"""The format's names of types."""
RESERVED = "__metadata__"
_ALIGNMENT = 8


def check_writable(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, meta: bool = False) -> None:
    """Whether the format can hold this; ``meta`` for tensors without data.

    Raises:
        StaError: names the tensors of a type or layout that the format lacks, and metadata that is
            not text; or this is a big-endian machine.
    """
    if sys.byteorder != "little":
        raise StaError("weights can be saved on little-endian machines only; the format is little-endian.")
    odd = [
        str(name)
        for name, tensor in tensors.items()
        if not isinstance(name, str)
        or name == RESERVED
        or not isinstance(tensor, Tensor)
        or tensor.layout != torch.strided
        or (tensor.device.type == "meta") != meta
        or tensor.dtype not in _NAMES
    ]
    if odd:
        raise StaError(
            f"cannot save {listed(odd)}: safetensors holds dense tensors of real, integer and boolean type "
            f"under a text name other than '{RESERVED}'."
        )
    wrong = [key for key, value in metadata.items() if not isinstance(key, str) or not isinstance(value, str)]
    if wrong:
        raise StaError(f"cannot save the metadata {listed(wrong)}: names and values must be text.")


def header_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The header, with its length in front, and the order in which the tensors follow it.

    Wide types come first, so that every tensor is aligned to its entries' size; within a type, by
    name.

    Args:
        tensors: name -> tensor; only name, shape and type count.
        metadata: text -> text.
    """
    order = sorted(
        tensors, key=lambda name: (-tensors[name].element_size(), _NAMES[tensors[name].dtype], name)
    )
    entries: dict[str, object] = {RESERVED: dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        places = [offset, offset + tensor.nbytes]
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": places}
        offset += tensor.nbytes
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, order


def packed(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's entries, one after another, in this machine's order."""
    flat = tensor.detach().cpu().resolve_neg().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    # A single entry counts as contiguous whatever its stride; as bytes it must really be.
    whole = flat if flat.stride(0) == 1 else flat.clone(memory_format=torch.contiguous_format)
    return whole.view(torch.uint8).numpy().data
