"""The image encoder inside a larger checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import TypeVar

from torch import Tensor

from sta_lightning.arithmetic.checks import compare_names
from sta_lightning.arithmetic.sources import TensorSource
from sta_lightning.errors import StaError, listed

# What may stand in front of an encoder's names: CLIP's tower, our and others' wrappers,
# DataParallel, torch.compile.
_WRAPPERS = {
    *("visual", "encoder", "image_encoder", "model", "module", "_orig_mod", "_forward_module"),
    *("backbone", "net"),
}
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
        prefix: what stands in front of the names, for example ``"visual."``; ``None`` finds it
            among the usual wrappers (none, ``visual.``, ``encoder.``, ``module.``,
            ``model.visual.`` and their like).
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
    ends = ((key, name) for name in names for key in state if key == name or key.endswith(f".{name}"))
    counts = Counter(key.removesuffix(name) for key, name in ends)
    usual = {prefix: count for prefix, count in counts.items() if set(prefix.split(".")[:-1]) <= _WRAPPERS}
    whole = [prefix for prefix, count in usual.items() if count == len(names)]
    if len(whole) == 1:
        return whole[0]
    if whole:
        raise StaError(
            f"{title} holds the encoder more than once, under {listed(whole)}. Say which one with prefix, or "
            "save it alone."
        )
    unusual = [prefix for prefix, count in counts.items() if count == len(names)]
    if unusual:
        raise StaError(
            f"{title} holds the encoder under {listed(unusual)}, which is no usual place. Say so with "
            "prefix, or save it alone."
        )
    # The fullest place tells the most about what is missing.
    return max(usual, key=lambda prefix: usual[prefix], default="")


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
    usual = sorted(prefix for prefix in found if set(prefix.split(".")[:-1]) <= _WRAPPERS)
    return usual[0] if usual else ""


def is_encoder_tensor(name: str, prefix: str) -> bool:
    """Whether a tensor is the image encoder's: under the prefix, and no part beside one."""
    return name.startswith(prefix) and not _is_beside(name[len(prefix) :])


def _is_beside(name: str) -> bool:
    return name in _BESIDE_WHOLE or name.startswith(_BESIDE)
