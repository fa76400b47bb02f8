"""One registry of merging and forgetting methods, for the modules, the command line and the experiments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from sta_lightning.arithmetic.forgetting import RandomForgetting, StaForgetting
from sta_lightning.arithmetic.fusion import RandomMask, Sta
from sta_lightning.arithmetic.linear import FORGETS, Average, Negation, TaskArithmetic
from sta_lightning.arithmetic.memory import run_in_memory
from sta_lightning.arithmetic.method import MergeMethod
from sta_lightning.arithmetic.sparse import AddVectors, SubtractVector
from sta_lightning.arithmetic.states import Merged, StateDict
from sta_lightning.errors import StaError, listed

FUSION_METHODS: Mapping[str, type[MergeMethod]] = {
    "sta": Sta,
    "random_mask": RandomMask,
    "average": Average,
    "task_arithmetic": TaskArithmetic,
    "vectors": AddVectors,
}
"""The methods of :func:`merge` by name."""

FORGET_METHODS: Mapping[str, type[MergeMethod]] = {
    "sta": StaForgetting,
    "random_mask": RandomForgetting,
    "task_arithmetic": Negation,
    "vector": SubtractVector,
}
"""The methods of :func:`unlearn` by name."""


def has_setting(method: type[MergeMethod], name: str) -> bool:
    """Whether a method has a setting of that name."""
    return any(field.name == name for field in dataclasses.fields(method))  # type: ignore[arg-type]


def make_method(
    name: str,
    methods: Mapping[str, type[MergeMethod]],
    *,
    scale: float | None = None,
    **settings: Any,
) -> MergeMethod:
    """A method by its name, with the settings that it has.

    Args:
        name: one of ``methods``.
        methods: :data:`FUSION_METHODS` or :data:`FORGET_METHODS`.
        scale: its coefficient; ``None`` for its default.
        settings: settings of which it takes those that it has.

    Raises:
        StaError: if the method is unknown, is given a scale and has none, or a setting is out of range.
    """
    found = methods.get(name)
    what = "forgetting" if methods is FORGET_METHODS else "merging"
    if found is None:
        raise StaError(f"{what} method '{name}' is unknown. Choose one of {listed(methods)}.")
    if scale is not None:
        if not has_setting(found, "scale"):
            raise StaError(
                f"{what} method '{name}' has no coefficient, and scale={scale!r} was given. Leave scale out, or "
                "choose 'task_arithmetic'."
            )
        settings["scale"] = scale
    return found(**{key: value for key, value in settings.items() if has_setting(found, key)})


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
    made = make_method(method, FUSION_METHODS, scale=scale, p=p, normalize=normalize, seed=seed)
    if made.needs_importance and importance is None:
        raise StaError(NO_IMPORTANCE)
    scores = importance if made.needs_importance else None
    return run_in_memory(made, pretrained, finetuned, scores, dtype=dtype)


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
    made = make_method(method, FORGET_METHODS, scale=scale, p=p, seed=seed)
    if made.needs_importance and importance is None:
        raise StaError(NO_IMPORTANCE)
    return run_in_memory(
        made,
        model,
        {task: finetuned},
        {task: importance} if made.needs_importance and importance is not None else None,
        origin=pretrained,
        base_title=FORGETS,
        dtype=dtype,
    )


NO_IMPORTANCE = (
    "method 'sta' ranks entries by importance, and none was given. Score the fine-tuned models (sta score), "
    "or compute importance_for('amp', ...), which needs no data."
)
