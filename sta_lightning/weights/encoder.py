"""The image encoder inside a larger checkpoint."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import dropwhile
from typing import TypeVar

from torch import Tensor

from sta_lightning.arithmetic.checks import compare_names
from sta_lightning.arithmetic.sources import TensorSource
from sta_lightning.errors import StaError, StaWarning, listed

# What usually stands in front of an encoder's names; preferred where the encoder is there twice.
_USUAL = {"visual", "encoder", "image_encoder", "model", "backbone", "net"}
# What torch.compile, FSDP, activation checkpointing, Fabric, DataParallel and DDP add to the names
# of what they wrap, at any depth.
_WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "module"}
)
# What may lie beside an encoder without being part of it: a text tower, a temperature, a
# classifier.
_BESIDE = (
    *("head.", "head_dist.", "classifier.", "classification_head.", "fc."),
    *("text.", "token_embedding.", "ln_final."),
)
_BESIDE_WHOLE = frozenset({"logit_scale", "logit_bias", "text_projection"})


Part = TypeVar("Part", Tensor, TensorSource)


def encoder_part(
    state: Mapping[str, Part], *, names: Collection[str], prefix: str | None = None, title: str
) -> dict[str, Part]:
    """The image encoder among tensors that need not have been read.

    Args:
        state: tensor name -> tensor.
        names: the encoder's own tensor names; a mapping name -> tensor (the encoder's state dict)
            has shapes compared too.
        prefix: what stands in front of the names, for example ``"visual."``; ``None`` finds it,
            at any depth.
        title: what to call ``state`` in a message.

    Raises:
        StaError: as :func:`~sta_lightning.weights.encoder_weights`.
    """
    if not names:
        raise StaError("the encoder has no tensors to look for: names is empty.")
    chosen = _find_prefix(state, names, title) if prefix is None else prefix
    _check_complete(state, names, chosen, title)
    found = {name: state[chosen + name] for name in names}
    if isinstance(names, Mapping):
        compare_names(names, found, reference_name="the encoder", other_name=title, kinds=False)
    return found


def _find_prefix(state: Collection[str], names: Collection[str], title: str) -> str:
    wanted = frozenset(names)
    counts = Counter(key.removesuffix(end) for key in state for end in sorted(dotted_ends(key) & wanted))
    whole = [prefix for prefix, count in counts.items() if count == len(names)]
    usual = [prefix for prefix in whole if set(prefix.split(".")[:-1]) <= _USUAL]
    if len(whole) > 1 and len(usual) == 1:
        return usual[0]
    if len(whole) > 1:
        raise StaError(
            f"{title} holds the encoder more than once, under {listed(whole)}. Save the one that is meant alone."
        )
    # The fullest place tells the most about what is missing.
    return max(counts, key=lambda prefix: counts[prefix], default="")


@functools.lru_cache(1 << 14)  # every model of a merge has the same names
def dotted_ends(name: str) -> frozenset[str]:
    """A name, and what stands in it behind each of its dots."""
    parts = name.split(".")
    return frozenset(".".join(parts[start:]) for start in range(len(parts)))


def _check_complete(state: Collection[str], names: Collection[str], prefix: str, title: str) -> None:
    wanted = set(names)
    inside = {key[len(prefix) :] for key in state if key.startswith(prefix)}
    missing = [name for name in names if name not in inside]
    extra = sorted(name for name in inside - wanted if not _is_beside(name))
    place = f"under '{prefix}'" if prefix else "at the top level"
    if missing or extra:
        raise StaError(
            f"{title} does not hold this encoder {place}: missing {len(missing)} of {len(wanted)} tensors: "
            f"{listed(missing)}; unknown {len(extra)}: {listed(extra)}. Name the encoder that the file was "
            "made with."
        )


def encoder_prefix(names: Collection[str]) -> str:
    """The prefix of the image encoder's names: of a whole CLIP ``visual.`` behind its wrappers."""
    found = {name[: name.index("visual.") + 7] for name in names if "visual." in name}
    return min(found, default="", key=lambda prefix: (prefix.count("."), prefix))


def unwrapped(state: Mapping[str, Part], title: str) -> Mapping[str, Part]:
    """The same tensors, named without what wrappers of modules add, at every level.

    A warning tells of it, unless the whole model was wrapped and nothing inside. Names stay as they
    are where two would become one.
    """
    names = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in state}
    if len(set(names.values())) < len(state) or all(name == short for name, short in names.items()):
        return state
    inside = {
        part
        for name in state
        for part in dropwhile(_WRAPPERS.__contains__, name.split("."))
        if part in _WRAPPERS
    }
    if inside:
        warnings.warn(
            f"{title} was saved out of a wrapped model: {listed(sorted(inside))} was left out of the names of its tensors.",
            StaWarning,
            stacklevel=2,
        )
    return {short: state[name] for name, short in names.items()}


def is_encoder_tensor(name: str, prefix: str) -> bool:
    """Whether a tensor is the image encoder's: under the prefix, and no part beside one."""
    return name.startswith(prefix) and not _is_beside(name[len(prefix) :])


def _is_beside(name: str) -> bool:
    return name in _BESIDE_WHOLE or name.startswith(_BESIDE)
