"""LoRA adapters as PEFT saves them: the model that they make of their base, a tensor at a time."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from sta_lightning.arithmetic.sources import SourceDict, TensorSource
from sta_lightning.errors import StaError, listed
from sta_lightning.weights.formats.checkpoint import ADAPTERS, Checkpoint, open_checkpoint, read_table
from sta_lightning.weights.formats.lowrank import Adapted, Shifted
from sta_lightning.weights.formats.storages import shared_names
from sta_lightning.weights.formats.towers import named_as
from sta_lightning.weights.opened import PathLike

CONFIG = "adapter_config.json"
WRAPPER = "base_model.model."
# PEFT's name of a part -> what it is here.
_PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_embedding_A": "rows",
    "lora_embedding_B": "b",
}
# Where older versions kept a whole tensor that replaces the base's, and the base's own beside it.
_INSIDE = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
_BASES_OWN = ".original_module."
_PLAIN = re.compile(r"\^?[\w.-]+")
# Settings that change the model beyond the matrices that are read here.
_BEYOND = (
    *("layer_replication", "trainable_token_indices", "alora_invocation_tokens"),
    *("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config"),
)
# Ways to draw the first matrices that leave the base as it is; the others take a part out of it.
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
_MERGE_FIRST = "Put it into its base with `merge_and_unload` of peft, and give the model that this makes."


def is_adapter(path: PathLike) -> bool:
    """Whether a path is a folder that PEFT wrote, or the weights file in one."""
    asked = Path(path)
    folder = asked if asked.is_dir() else asked.parent
    return (folder / CONFIG).is_file() and (asked.is_dir() or asked.name in ADAPTERS)


def open_adapter(path: PathLike, base: Checkpoint, stack: ExitStack) -> Checkpoint:
    """The model that an adapter makes of its base, unread.

    In the base's names; of a CLIP in open_clip's or Hugging Face's, as the adapter has them.

    Args:
        path: a folder with ``adapter_config.json`` and ``adapter_model.safetensors`` or ``.bin``.
        base: the model that the adapter was trained on; what the adapter does not change is its.
        stack: what closes the files.

    Raises:
        StaError: names the adapter if it is of another kind than LoRA, changes more than its
            matrices tell, is not whole, or fits another base.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    title = f"the adapter '{folder}'"
    config = read_table(folder / CONFIG)
    _check_config(config, title)
    file = next((folder / name for name in ADAPTERS if (folder / name).is_file()), None)
    if file is None:
        raise StaError(
            f"{title} has no weights beside its configuration ({listed(ADAPTERS)}). Copy them too."
        )
    matrices, copies = _sorted(open_checkpoint(file, stack).tensors, title)
    weights = {module: _weight(config, module, title) for module in matrices}
    wanted = [*copies, *weights.values(), *(f"{m}.bias" for m, p in matrices.items() if "bias" in p)]
    base = named_as(wanted, base)
    place = _place(wanted, base, title)
    tensors: dict[str, TensorSource] = dict(base.tensors)
    for name, source in copies.items():
        own = tensors[place[name]]
        if own.shape != source.shape:
            raise StaError(
                f"{title} has '{name}' of shape {tuple(source.shape)}, and the base {base.title} of "
                f"{tuple(own.shape)}. Give the base that it was trained on."
            )
        tensors[place[name]] = source
    for module, parts in matrices.items():
        change = parts.get("a") or parts.get("rows")
        if change is None or "b" not in parts:
            raise StaError(f"{title} has one of the two matrices of '{module}' alone. Save it again.")
        scale = _scale(config, module, change.shape[0], title)
        across = bool(config.get("fan_in_fan_out")) or "rows" in parts
        name = place[weights[module]]
        try:
            tensors[name] = Adapted(
                tensors[name], change, parts["b"], scale, parts.get("magnitude"), across=across
            )
        except StaError as error:
            raise StaError(
                f"{title} does not fit the base {base.title}, '{name}': {error}. Give the base that it was trained on."
            ) from error
        if "bias" in parts:
            name = place[f"{module}.bias"]
            tensors[name] = Shifted(tensors[name], parts["bias"], scale)
    # A further name of a tensor is one of the adapted model's too, or none.
    further = [name for name in shared_names(base.tensors) if tensors[name] is base.tensors[name]]
    tensors = {name: source for name, source in tensors.items() if name not in further}
    return replace(base, path=Path(path), tensors=tensors, files=(file,), metadata={}, facts={})


def _check_config(config: Mapping[str, Any], title: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise StaError(f"{title} is of the kind {kind!r}; LoRA is read (DoRA and rsLoRA too). {_MERGE_FIRST}")
    if beyond := [name for name in _BEYOND if config.get(name)]:
        raise StaError(f"{title} uses {listed(beyond)}, which its matrices do not tell. {_MERGE_FIRST}")
    start = config.get("init_lora_weights")
    if start not in _STARTS:
        raise StaError(
            f"{title} was begun with init_lora_weights={start!r}, which changes the base too. Save it once more with "
            "`path_initial_model_for_weight_conversion` of peft's save_pretrained."
        )


def _sorted(
    stored: SourceDict, title: str
) -> tuple[dict[str, dict[str, TensorSource]], dict[str, TensorSource]]:
    """The parts of each module's change, and the tensors that stand in place of the base's."""
    matrices: dict[str, dict[str, TensorSource]] = defaultdict(dict)
    copies: dict[str, TensorSource] = {}
    for full, source in stored.items():
        name = full.removeprefix(WRAPPER)
        found = [end for end in _PARTS if name.endswith(f".{end}")]
        if found:
            matrices[name.removesuffix(f".{found[0]}")][_PARTS[found[0]]] = source
        elif ".lora_" in name:
            raise StaError(f"{title} holds '{full}', a part of LoRA that is not known here. {_MERGE_FIRST}")
        elif _BASES_OWN not in name:
            copies[_INSIDE.sub("", name)] = source
    if not matrices and not copies:
        raise StaError(f"{title} holds no tensor. Save it again.")
    return matrices, copies


def _weight(config: Mapping[str, Any], module: str, title: str) -> str:
    """The tensor that a module's matrices change: its weight, or a parameter that is named."""
    named = [str(name).rpartition(".") for name in config.get("target_parameters") or ()]
    found = {leaf for home, _, leaf in named if module == home or module.endswith(f".{home}")}
    if len(found) > 1 or module.endswith(".base_layer"):
        raise StaError(
            f"{title} changes several parameters of '{module.removesuffix('.base_layer')}'. {_MERGE_FIRST}"
        )
    return f"{module}.{found.pop() if found else 'weight'}"


def _place(wanted: Iterable[str], base: Checkpoint, title: str) -> dict[str, str]:
    """The base's name of each tensor: one prefix more or less, as between a model and its body."""
    names = list(wanted)
    first = min(names, key=len)
    ends = [n for n in base.tensors if n == first or n.endswith(f".{first}") or first.endswith(f".{n}")]
    ends.sort(key=lambda name: name != first)  # its own name before those of another part
    best, found = names, dict[str, dict[str, str]]()
    for end in ends:
        more, less = (end.removesuffix(first), "") if end.endswith(first) else ("", first.removesuffix(end))
        place = {name: more + name.removeprefix(less) for name in names}
        missing = [name for name in names if place[name] not in base.tensors]
        if not missing and not more + less:
            return place
        if not missing:
            found[place[first]] = place
        best = min(best, missing or names, key=len)
    if len(found) > 1:
        raise StaError(
            f"{title} fits several parts of the base {base.title}: its '{first}' may be any of {listed(found)}. Give the part "
            "alone that it was trained on as the base."
        )
    for place in found.values():
        return place
    raise StaError(
        f"{title} changes tensors that the base {base.title} does not have: {listed(best)}. Give the base that it was "
        "trained on."
    )


def _scale(config: Mapping[str, Any], module: str, rank: int, title: str) -> float:
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"), title)
    stated = _by_pattern(config.get("rank_pattern"), module, config.get("r"), title)
    odd = rank < 1 or stated != rank or isinstance(alpha, bool)
    if odd or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise StaError(
            f"{title} says rank {stated!r} and alpha {alpha!r} for '{module}', where its matrices have rank {rank}. Save it "
            "again, or mend its adapter_config.json."
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: object, module: str, default: object, title: str) -> object:
    """PEFT's rule: the first pattern that is the module's name, or its end behind a dot.

    A file's regular expression could take for ever; of those only ``^`` and ``.`` are followed.
    """
    for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
        if not _PLAIN.fullmatch(pattern):
            raise StaError(
                f"{title} gives ranks or alphas by {pattern!r}, which is no plain name. {_MERGE_FIRST}"
            )
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
