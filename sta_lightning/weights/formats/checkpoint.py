"""Any checkpoint, from a file or a folder, as named tensors that are not read yet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sta_lightning.arithmetic.sources import SourceDict, TensorSource, in_memory
from sta_lightning.arithmetic.states import StateDict
from sta_lightning.documents import read_json
from sta_lightning.errors import StaError, listed
from sta_lightning.weights.encoder import unwrapped
from sta_lightning.weights.foreign import foreign_file
from sta_lightning.weights.formats.archive import open_pickled
from sta_lightning.weights.formats.layout import Layout, recognise
from sta_lightning.weights.formats.states import facts_of, state_keys, state_of
from sta_lightning.weights.opened import PathLike, is_safetensors
from sta_lightning.weights.provenance import PACKAGE
from sta_lightning.weights.sparse import KIND as VECTOR
from sta_lightning.weights.tensor_file import TensorFile

INDEX = ".index.json"
"""How the name of a table of shards ends."""
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
"""The weights of an adapter beside its configuration."""
USUAL_NAMES = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "open_clip_pytorch_model.bin",
    *ADAPTERS,
)
"""The names under which folders from a hub keep weights; the first that is there is read."""
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors with what is known of where they come from.

    Attributes:
        path: what was asked for, a file or a folder.
        container: what sort of file it is: ``safetensors``, ``torch archive``, ``TorchScript
            archive``, ``old torch file``, ``plain pickle``.
        tensors: by the names that they have in the file.
        files: those that hold them, more than one if the checkpoint is in shards.
        metadata: text -> text, of a safetensors file; of several, that of the first.
        facts: plain values beside the tensors, of a pickled checkpoint.
        states: under which keys a pickled checkpoint holds state dicts; the first was read.
    """

    path: Path
    container: str
    tensors: SourceDict
    files: tuple[Path, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    states: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What to call it in a message."""
        return f"'{self.path}'"

    @property
    def is_ours(self) -> bool:
        """Whether this package wrote the file and says so in its metadata."""
        return self.metadata.get("package") == PACKAGE

    @cached_property
    def layout(self) -> Layout:
        """How the tensors are named; a masked task vector, each in two parts, is in no layout.

        Raises:
            StaError: see :func:`~sta_lightning.weights.formats.layout.recognise`.
        """
        if self.is_ours and self.metadata.get("kind", "").startswith(VECTOR):
            return Layout("unknown")
        if (method := self._quantised) is not None:
            what = (
                f"a model quantised by {method}, as its {CONFIG} says, whose packed numbers cannot be added"
            )
            return Layout("unknown", foreign=f"{what}. Give the model that it was made from")
        return recognise(self.tensors, self.title)

    @property
    def _quantised(self) -> str | None:
        """How the model is quantised that a hub's folder holds; of any other file nobody tells."""
        usual = any(file.name in USUAL_NAMES or _SHARD.search(file.name) for file in self.files)
        config = (self.beside(CONFIG) or {}).get("quantization_config") if usual else None
        return str(config.get("quant_method") or "an unnamed method") if isinstance(config, Mapping) else None

    def beside(self, name: str) -> Mapping[str, Any] | None:
        """A table in JSON beside the weights, as :data:`CONFIG`; ``None`` if there is none.

        Raises:
            StaError: it is no table in JSON.
        """
        path = self.files[0].parent / name if self.files else None
        return read_table(path) if path is not None and path.is_file() else None


def held(state: StateDict) -> Checkpoint:
    """A state dict as a checkpoint, to know its layout."""
    return Checkpoint(Path("a model in memory"), "memory", in_memory(state), ())


def open_checkpoint(
    path: PathLike | StateDict,
    stack: ExitStack,
    *,
    unsafe_pickle: bool = False,
    state: str | None = None,
) -> Checkpoint:
    """Open a checkpoint; none of its tensors is read yet, and no code in it is run.

    What wrappers added to the names of tensors is taken out of them, with a warning
    (:func:`~sta_lightning.weights.encoder.unwrapped`).

    Args:
        path: a safetensors file; a pickled one (``.pt``, ``.ckpt``, ``.pth.tar``, …: the content
            decides), TorchScript archives included; a table of shards (``….index.json``); or a
            folder that holds one of these under a usual name. Or a state dict, as it is.
        stack: what closes the files.
        unsafe_pickle: whether a pickled file may hold objects of unknown classes, as a module saved
            whole does. They are kept as inert records: no class is built and nothing is called in
            either case.
        state: which state dict of a pickled checkpoint that holds several; see
            :func:`~sta_lightning.weights.formats.states.state_keys`.

    Raises:
        StaError: names the file if it is missing, broken or of another format, or names more than
            it may; names the shard that is missing.
    """
    if isinstance(path, Mapping):
        return held(path)
    file = _file_of(Path(path))
    if file.name.endswith(INDEX):
        return _sharded(Path(path), file, stack)
    shard = _SHARD.search(file.name)
    if shard and int(shard[1]) > 1:
        raise StaError(
            f"'{path}' is one of {int(shard[1])} shards of a model. Give the folder that holds all of them and their table."
        )
    return replace(_one(file, stack, unsafe_pickle, state), path=Path(path))


def weight_files(path: PathLike) -> tuple[Path, ...]:
    """The files that a checkpoint's tensors lie in, without opening them: what a hash is taken of.

    Raises:
        StaError: names the folder if it holds none, and a table of shards that is none.
    """
    file = _file_of(Path(path))
    if file.name.endswith(INDEX):
        return tuple(file.parent / name for name in sorted(set(_weight_map(file).values())))
    return (file,)


def _one(file: Path, stack: ExitStack, unsafe_pickle: bool, state: str | None = None) -> Checkpoint:
    if is_safetensors(file):
        if state is not None:
            raise StaError(f"'{file}' holds one state dict, as safetensors files do: ask for no {state!r}.")
        tensors = stack.enter_context(TensorFile(file))
        return Checkpoint(file, "safetensors", unwrapped(tensors, f"'{file}'"), (file,), tensors.metadata)
    pickled = open_pickled(file, stack, unsafe_pickle=unsafe_pickle)
    keys = state_keys(pickled, state)
    state_dict = unwrapped(state_of(pickled, keys), f"'{file}'")
    return Checkpoint(file, pickled.kind, state_dict, (file,), facts=facts_of(pickled, keys), states=keys)


def _file_of(asked: Path) -> Path:
    """The file itself, or that with the weights in a folder."""
    if not asked.is_dir():
        return asked
    found = [asked / name for name in USUAL_NAMES if (asked / name).is_file()]
    if not found:
        inside = sorted(item.name for item in asked.iterdir())
        for name in inside:
            if (known := foreign_file(asked / name)) is not None and not name.endswith(".json"):
                raise StaError(f"'{asked}' holds no weights that can be read: '{name}' is {known}")
        raise StaError(
            f"'{asked}' is a folder without weights under a usual name ({listed(USUAL_NAMES, limit=len(USUAL_NAMES))}); it holds "
            f"{listed(inside)}. Give the weights file itself, or finish the download."
        )
    return found[0]


def _sharded(asked: Path, index: Path, stack: ExitStack) -> Checkpoint:
    places = _weight_map(index)
    names = sorted(set(places.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise StaError(
            f"'{asked}' is not complete: of the {len(names)} shards that '{index.name}' names, {len(missing)} are missing: "
            f"{listed(missing)}. Download them too."
        )
    shards = {name: _one(index.parent / name, stack, unsafe_pickle=False) for name in names}
    tensors: dict[str, TensorSource] = {}
    for tensor, name in places.items():
        if tensor not in shards[name].tensors:
            raise StaError(
                f"'{index.parent / name}' lacks the tensor '{tensor}' that '{index.name}' says it holds. The shards are of "
                "different models or downloads; download them again."
            )
        tensors[tensor] = shards[name].tensors[tensor]
    twice = [t for name, shard in shards.items() for t in shard.tensors if places.get(t, name) != name]
    if twice:
        raise StaError(
            f"'{asked}' has tensors in two shards, and '{index.name}' names one: {listed(twice)}. The shards are of different "
            "models or downloads; download them again."
        )
    files = tuple(index.parent / name for name in shards)
    return replace(next(iter(shards.values())), path=asked, tensors=tensors, files=files, facts={})


def _weight_map(index: Path) -> dict[str, str]:
    if not index.is_file():
        raise StaError(f"there is no table of shards '{index}'. Check the path.")
    found = read_table(index, unique=True).get("weight_map")
    places = found if isinstance(found, dict) else {}
    if not places or not all(isinstance(name, str) and Path(name).name == name for name in places.values()):
        raise StaError(
            f"'{index}' is no table of shards: its 'weight_map' does not give each tensor a file beside it. Download it again."
        )
    return {str(tensor): str(name) for tensor, name in places.items()}


def read_table(path: Path, *, unique: bool = False) -> dict[str, Any]:
    """A file in JSON that is a table, ``unique`` if no name may stand in it twice.

    Raises:
        StaError: names the file if it is none.
    """
    try:
        content = read_json(path.read_text(encoding="utf-8"), unique=unique)
    except (OSError, ValueError) as error:
        raise StaError(f"'{path}' is not readable as JSON ({error}). Copy or make it again.") from error
    if not isinstance(content, dict):
        raise StaError(f"'{path}' holds a {type(content).__name__}, not a table. Copy or make it again.")
    return content
