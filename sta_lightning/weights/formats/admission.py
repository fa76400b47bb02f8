"""What a pickled checkpoint may name, and what may stand in it without being known."""

from __future__ import annotations

from sta_lightning.errors import StaError
from sta_lightning.weights.formats.pickled import Admission, Global, Use

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Name of a storage class in torch -> type of its entries."""
REBUILDS = {
    *(f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3")),
    *(f"torch._utils._rebuild_{what}" for what in ("parameter", "parameter_with_state")),
    "torch._tensor._rebuild_from_type_v2",
}
"""What tensors are pickled as a call of."""
NESTED = "torch.storage._load_from_bytes"
"""What a storage is pickled as a call of, where Python's own pickler wrote it."""
MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")

_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "double", "float", "half"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    *("bool", "long", "int", "short"),
)
# Tensors, ordered mappings and plain values: what a state dict consists of.
_PLAIN = REBUILDS.union(
    MAPPINGS,
    # What training codes keep beside a state dict: settings, a measured number.
    ("argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    ("torch.Size", "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter"),
    ("torch.storage.UntypedStorage", "torch.storage.TypedStorage", "torch.serialization._get_layout"),
    ("_codecs.encode", "builtins.set", "__builtin__.set", "builtins.frozenset", "builtins.bytearray"),
    (f"torch.{name}" for name in (*STORAGES, "UntypedStorage", *_DTYPES)),
    (f"torch.storage.{name}" for name in STORAGES),
)
# What TorchScript writes lists as.
_SCRIPT = {
    "torch.jit._pickle.restore_type_tag",
    *(f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")),
}
# What image transforms, paths and settings that are saved along with a module are calls of.
_BESIDE_MODULES = {
    NESTED,
    *("torchvision.transforms.functional.InterpolationMode", "torchvision.transforms.InterpolationMode"),
    *("PIL.Image.Resampling", "collections.deque", "functools.partial"),
    *("builtins.slice", "builtins.complex"),
    *("pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath"),
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct"),
    *("numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct"),
}


def state_dicts_only(title: str) -> Admission:
    """Admit tensors, ordered mappings and plain values; refuse whatever else a file names."""

    def admit(use: Use, what: Global) -> None:
        if str(what) not in _PLAIN:
            raise StaError(
                f"{title} holds more than tensors and plain values (it asks for '{what}'); it was not read. Save its "
                "state dict alone, best as .safetensors. The tensors of a module that was pickled whole are taken out, "
                "without running any code in it, by `sta convert IN OUT.safetensors --to=safetensors --unsafe-pickle`."
            )

    return admit


def script_objects(title: str) -> Admission:
    """Admit a TorchScript archive's objects: tensors, and classes of its own unread code."""

    def admit(use: Use, what: Global) -> None:
        own = what.module.split(".")[0] == "__torch__"
        if (use == "called" and own) or not (own or str(what) in _PLAIN or str(what) in _SCRIPT):
            raise StaError(
                f"{title} is a TorchScript archive that asks for '{what}', which no model's weights need; it was not read. "
                "Save the model's state dict as .safetensors."
            )

    return admit


def module_trees(title: str) -> Admission:
    """Admit objects of any class, as inert records, and calls of an explicit list."""

    def admit(use: Use, what: Global) -> None:
        if use == "called" and str(what) not in _PLAIN and str(what) not in _BESIDE_MODULES:
            raise StaError(
                f"{title} asks to call '{what}'; it was not called, and the file was not read. No module of the usual "
                "libraries needs that: the file may be malicious. Load it only where you can trust it, and save its state "
                "dict as .safetensors."
            )

    return admit
