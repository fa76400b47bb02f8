"""What a file is that holds no weights which can be read: the formats that people meet, by name."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

# How a file begins -> what it is, and what to do. Text is compared without capitals.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, the text that stands for a file which was not fetched. Fetch it with `git lfs pull`, or download "
        "the file itself.",
    ),
    *(
        (
            begin,
            "a web page, with which a server answers a wrong address or a missing login. Download the file itself.",
        )
        for begin in (b"<!doctype html", b"<html")
    ),
    (b"\x89hdf\r\n\x1a\n", "an HDF5 file, as Keras writes it. Save the model's weights from PyTorch."),
    (b"gguf", "a GGUF file, as llama.cpp reads it. Give the model that it was made from."),
    (b"\x93numpy", "a NumPy array. Save the tensors by name, as .safetensors."),
    (b"\x1f\x8b", "packed by gzip. Unpack it first."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive. Unpack it first."),
    (
        b"{",
        "a text in JSON, such as a model's settings. Give the file with the weights, which lies beside it.",
    ),
)
_TENSORFLOW = re.compile(r"\.ckpt(-\d+)?\.(index|meta|data-\d{5}-of-\d{5})$|^saved_model\.pb$")
_TENSORFLOW_SAYS = (
    "a checkpoint of TensorFlow. Load it there or in transformers (from_tf=True), and save it for PyTorch."
)
_ENDINGS = {
    ".h5": "a file of Keras. Save the model's weights from PyTorch.",
    ".keras": "a file of Keras. Save the model's weights from PyTorch.",
    ".msgpack": "a checkpoint of Flax. Load it in transformers (from_flax=True), and save it for PyTorch.",
    ".onnx": "an ONNX graph. Give the checkpoint that it was exported from.",
    ".tflite": "a TensorFlow Lite graph. Give the checkpoint that it was exported from.",
    ".gguf": "a GGUF file, as llama.cpp reads it. Give the model that it was made from.",
}
# How tensors are called -> whose they are.
_TENSORS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"(^|[._])lora_(A|B|down|up|embedding_[AB])([._]|$)"),
        "a LoRA adapter, which is what a fine-tuning adds to a model. Add it to its base first (in peft: "
        "merge_and_unload), and give the model that it makes",
    ),
    (
        re.compile(r"\.(qweight|qzeros)$"),
        "a model quantised by GPTQ or AWQ, whose packed numbers cannot be added. Give the model that it was made from",
    ),
    (
        re.compile(r"\.weight\.(absmax|quant_map|quant_state\.\S+)$|\.SCB$"),
        "a model quantised by bitsandbytes, whose packed numbers cannot be added. Give the model that it was made from",
    ),
)


def foreign_file(path: Path) -> str | None:
    """What a file is by its name and its beginning, and what to do; ``None`` if it is not known.

    ``path`` need not be there: TensorFlow calls a checkpoint by what its files' names begin with.
    """
    if _TENSORFLOW.search(path.name) or path.with_name(f"{path.name}.index").is_file():
        return _TENSORFLOW_SAYS
    start = b""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        start = stream.read(512)
    if start[257:262] == b"ustar":
        return "a tar archive. Unpack it first."
    start = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    text = b"\0" not in start
    for begin, what in _BEGINNINGS:
        if start.startswith(begin) and (text or begin != b"{"):
            return what
    return _ENDINGS.get(path.suffix.lower())


def foreign_tensors(names: Iterable[str]) -> str | None:
    """What a file holds whose tensors are called so; ``None`` if it may be a model's weights."""
    return next((what for name in names for pattern, what in _TENSORS if pattern.search(name)), None)
