"""What a model changes of its base, as a LoRA adapter in PEFT's layout."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sta_lightning.arithmetic.checks import compare_names
from sta_lightning.arithmetic.sources import SourceDict, in_memory, whole
from sta_lightning.errors import StaError
from sta_lightning.weights.atomic import atomic_path
from sta_lightning.weights.formats.adapter import CONFIG, WRAPPER
from sta_lightning.weights.formats.checkpoint import ADAPTERS, Checkpoint, open_checkpoint
from sta_lightning.weights.formats.checkpoint import CONFIG as MODEL_CONFIG
from sta_lightning.weights.formats.storages import shared_names
from sta_lightning.weights.formats.writing import write_tensors
from sta_lightning.weights.opened import PathLike

# Parts of names that tell a table of embeddings, which looks like a linear layer's weight.
_EMBEDDINGS = ("embed", "wte", "wpe", "shared")
# Models of transformers that give words, and what their last layer is called in a file.
_SPEAKING = ("LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForConditionalGeneration")
_OUTPUTS = ("lm_head.weight", "decoder.weight", "embed_out.weight", "output.weight")
# Models of transformers whose linear layers keep their weights transposed.
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


@dataclass(frozen=True)
class Written:
    """What an adapter holds of a change.

    Attributes:
        kept: by layer: the share of its change's energy (sum of squares) that its matrices keep.
        total: the same over everything that changed.
        whole: modules that are in the adapter as they are.
        lost: tensors that changed and have no place in an adapter.
    """

    kept: dict[str, float]
    total: float
    whole: tuple[str, ...]
    lost: tuple[str, ...]


def write_adapter(tuned: PathLike, base: PathLike, output: PathLike, rank: int) -> Written:
    """Write what a model changes of its base as an adapter, whole or not at all.

    Each linear layer's and convolution's change is cut to its ``rank`` largest singular values, the
    best approximation of that rank (Eckart and Young 1936), and its bias is kept as it is. Other
    modules that changed (norms, embeddings) are in the adapter whole.

    Args:
        tuned: the model, in the names of a file from Hugging Face.
        base: the model that the adapter is for, in the same names.
        output: the folder, which must not be there yet; ``PeftModel.from_pretrained`` loads it.
        rank: of every layer's matrices; less where a layer has fewer rows or columns.

    Raises:
        StaError: a file is broken, names or shapes differ, nothing changed, or the folder cannot be
            written.
    """
    if rank < 1:
        raise StaError(f"an adapter of rank {rank} was asked for; give 1 or more.")
    with ExitStack() as stack:
        old, new = _once(open_checkpoint(base, stack)), open_checkpoint(tuned, stack)
        new = _once(new, old.tensors)
        lead = {"reference_name": f"the base {old.title}", "other_name": new.title}
        compare_names(old.tensors, new.tensors, **lead, kinds=False)
        energies = {
            name: _change(old.tensors, new.tensors, name).square().sum().item()
            for name, source in old.tensors.items()
            if source.dtype.is_floating_point
        }
        changed = [name for name, energy in energies.items() if energy]
        if not changed:
            raise StaError(f"{new.title} is its base {old.title}: there is no change to write.")
        layers = [name for name in changed if _is_layer(name, old.tensors)]
        tied = _is_tied(old)
        lost = [name for name in changed if "." not in name or (_is_words(name) and tied)]
        placed = [name for name in changed if name not in lost]
        modules = _kept_whole(placed, {name.removesuffix(".weight") for name in layers})
        layers = [name for name in layers if not _inside(name, modules)]

        tensors: dict[str, Tensor] = {}
        kept: dict[str, float] = {}
        ranks: dict[str, int] = {}
        across = _is_transposed(old)
        for name in layers:
            module = name.removesuffix(".weight")
            change = _change(old.tensors, new.tensors, name)
            a, b, kept[module] = _cut(change.T if across and change.dim() == 2 else change, rank)
            ranks[module] = len(a)
            tensors[f"{WRAPPER}{module}.lora_A.weight"] = a
            tensors[f"{WRAPPER}{module}.lora_B.weight"] = b
            if (bias := f"{module}.bias") in changed:
                tensors[f"{WRAPPER}{module}.base_layer.bias"] = whole(new.tensors[bias])
        tensors |= {WRAPPER + n: whole(source) for n, source in new.tensors.items() if _inside(n, modules)}
        config = _config(rank, ranks, modules, across, base)
        with atomic_path(output, folder=True) as folder:
            write_tensors(folder / ADAPTERS[0], in_memory(tensors), {"format": "pt"})
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    left = sum(energies[name] for name in lost)
    left += sum(energies[f"{module}.weight"] * (1 - share) for module, share in kept.items())
    return Written(kept, 1 - left / sum(energies.values()), tuple(modules), tuple(lost))


def _once(model: Checkpoint, known: Collection[str] = ()) -> Checkpoint:
    """The model without further names of its tensors, but those that are known."""
    further = shared_names(model.tensors, known)
    return replace(model, tensors={name: s for name, s in model.tensors.items() if name not in further})


def _change(old: SourceDict, new: SourceDict, name: str) -> Tensor:
    return whole(new[name], torch.float32) - whole(old[name], torch.float32)


def _is_layer(name: str, tensors: SourceDict) -> bool:
    """Whether a tensor is the weight of a linear layer or of a convolution."""
    return name.endswith(".weight") and len(tensors[name].shape) in (2, 4) and not _is_table(name)


def _is_table(name: str) -> bool:
    return any(part in name.lower() for part in _EMBEDDINGS)


def _is_words(name: str) -> bool:
    return _is_table(name) and not any(part in name for part in ("wpe", "position"))


def _is_tied(base: Checkpoint) -> bool:
    """Whether the last layer's weights are those of the embeddings, which peft would part."""
    named = (base.beside(MODEL_CONFIG) or {}).get("architectures") or [""]
    return str(named[0]).endswith(_SPEAKING) and not any(n.endswith(_OUTPUTS) for n in base.tensors)


def _kept_whole(placed: Collection[str], layers: Collection[str]) -> list[str]:
    """The modules that an adapter holds whole; none lies in another of them."""
    homes = {name.rpartition(".")[0] for name in placed}
    found = sorted(home for home in homes if home not in layers)
    return [place for place in found if not _inside(place, set(found) - {place})]


def _inside(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _is_transposed(base: Checkpoint) -> bool:
    return (base.beside(MODEL_CONFIG) or {}).get("model_type") in _TRANSPOSED


def _cut(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Matrices A and B whose product is a change's best approximation; the energy they keep."""
    u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
    count = min(rank, len(s))
    root = s[:count].sqrt()
    inner, outer = change.shape[1:], [1] * (change.dim() - 2)
    a = (root[:, None] * v[:count]).reshape(count, *inner).contiguous()
    b = (u[:, :count] * root).reshape(-1, count, *outer).contiguous()
    return a, b, float(s[:count].square().sum() / s.square().sum())


def _config(
    rank: int, ranks: dict[str, int], modules: list[str], across: bool, base: PathLike
) -> dict[str, Any]:
    smaller = {module: own for module, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": rank,  # so that B·A is added as it is
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "target_modules": sorted(ranks),
        "modules_to_save": modules or None,
        "bias": "lora_only",
        "fan_in_fan_out": across,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
