"""One registry of merging and forgetting methods, for the modules, the command line and the experiments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sta_lightning.arithmetic.forgetting import forget_masked, forget_random
from sta_lightning.arithmetic.fusion import fuse_masked, fuse_random
from sta_lightning.arithmetic.states import Merged, StateDict
from sta_lightning.arithmetic.vectors import average, negate, task_arithmetic
from sta_lightning.errors import StaError, listed


@dataclass(frozen=True)
class Method:
    """What a method is called and what it takes.

    Attributes:
        title: its name in a table.
        needs_importance: whether it ranks entries by importance.
        uses_p: whether the quantile p matters to it.
        default_scale: the coefficient if none is given; ``None`` for a method without one.
    """

    title: str
    needs_importance: bool = False
    uses_p: bool = False
    default_scale: float | None = None


FUSION_METHODS: Mapping[str, Method] = {
    "sta": Method("STA", needs_importance=True, uses_p=True),
    "random_mask": Method("Random mask", uses_p=True),
    "average": Method("Average"),
    "task_arithmetic": Method("Task arithmetic", default_scale=0.4),
}
"""The methods of :func:`merge` by name."""

FORGET_METHODS: Mapping[str, Method] = {
    "sta": Method("STA", needs_importance=True, uses_p=True),
    "random_mask": Method("Random mask", uses_p=True),
    "task_arithmetic": Method("Task arithmetic", default_scale=1.0),
}
"""The methods of :func:`unlearn` by name."""


def merge(
    method: str,
    pretrained: StateDict,
    finetuned: Mapping[str, StateDict],
    importance: Mapping[str, StateDict] | None = None,
    *,
    p: float = 0.7,
    scale: float | None = None,
    normalize: str = "tensor",
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Merged:
    """Merge fine-tuned models into one by a method's name.

    Args:
        method: one of :data:`FUSION_METHODS`.
        pretrained: tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes.
        importance: task name -> importance; ``"sta"`` needs it, the others leave it unread.
        p: quantile in [0, 1] of the masked methods, see :func:`~sta_lightning.arithmetic.fuse`.
        scale: coefficient of ``"task_arithmetic"``, 0.4 if ``None``; the other methods have none.
        normalize: normalisation of ``"sta"``: ``"tensor"``, ``"block"``, ``"model"`` or ``"none"``.
        seed: seed of ``"random_mask"``.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``pretrained``.

    Returns:
        The merged model and the share kept per tensor and task.

    Raises:
        StaError: if the method is unknown, needs an importance and has none, or is given a scale and has
            none; and whatever the method itself refuses.
    """
    found = _find(method, FUSION_METHODS, "merging", scale)
    if method == "sta":
        if importance is None:
            raise StaError(_NO_IMPORTANCE)
        return fuse_masked(pretrained, finetuned, importance, p=p, normalize=normalize, dtype=dtype)
    if method == "random_mask":
        return fuse_random(pretrained, finetuned, p=p, seed=seed, dtype=dtype)
    if method == "average":
        return Merged(average(pretrained, finetuned, dtype=dtype))
    return Merged(task_arithmetic(pretrained, finetuned, scale=_scale(scale, found), dtype=dtype))


def unlearn(
    method: str,
    model: StateDict,
    pretrained: StateDict,
    finetuned: StateDict,
    importance: StateDict | None = None,
    *,
    p: float = 0.7,
    scale: float | None = None,
    seed: int = 0,
    task: str = "target",
    dtype: torch.dtype | None = None,
) -> Merged:
    """Make a model forget one task by a method's name.

    Args:
        method: one of :data:`FORGET_METHODS`.
        model: the model that shall forget; tensor name -> tensor of any shape.
        pretrained: the model that ``finetuned`` started from.
        finetuned: the model fine-tuned on the task to forget.
        importance: its importance; ``"sta"`` needs it, the others leave it unread.
        p: quantile in [0, 1] of the masked methods, see :func:`~sta_lightning.arithmetic.forget`.
        scale: coefficient gamma of ``"task_arithmetic"``, 1 if ``None``; the other methods have none.
        seed: seed of ``"random_mask"``.
        task: what to call the task in messages and in ``kept``.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``model``.

    Returns:
        The model and the share kept per tensor, under ``task``.

    Raises:
        StaError: as :func:`merge`.
    """
    found = _find(method, FORGET_METHODS, "forgetting", scale)
    if method == "sta":
        if importance is None:
            raise StaError(_NO_IMPORTANCE)
        return forget_masked(model, pretrained, finetuned, importance, p=p, task=task, dtype=dtype)
    if method == "random_mask":
        return forget_random(model, pretrained, finetuned, p=p, seed=seed, task=task, dtype=dtype)
    return Merged(negate(model, pretrained, finetuned, scale=_scale(scale, found), dtype=dtype))


_NO_IMPORTANCE = (
    "method 'sta' ranks entries by importance, and none was given. Score the fine-tuned models (sta score), "
    "or compute importance_for('amp', ...), which needs no data."
)


def _find(name: str, methods: Mapping[str, Method], what: str, scale: float | None) -> Method:
    found = methods.get(name)
    if found is None:
        raise StaError(f"{what} method '{name}' is unknown. Choose one of {listed(methods)}.")
    if scale is not None and found.default_scale is None:
        raise StaError(
            f"{what} method '{name}' has no coefficient, and scale={scale!r} was given. Leave scale out, or "
            "choose 'task_arithmetic'."
        )
    return found


def _scale(scale: float | None, method: Method) -> float:
    chosen = method.default_scale if scale is None else scale
    assert chosen is not None
    return chosen
