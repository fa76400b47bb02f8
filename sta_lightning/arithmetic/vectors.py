"""Task vectors and the arithmetic without masks: average, task arithmetic, negation (Eq. 7 and 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sta_lightning.arithmetic.checks import (
    check_compatible,
    check_dtype,
    check_result,
    check_scale,
    check_state,
)
from sta_lightning.arithmetic.states import StateDict, floating_names, pieces, to_double, working_dtype
from sta_lightning.errors import StaError

PRETRAINED = "the pretrained model"


@torch.no_grad()
def task_vector(pretrained: StateDict, finetuned: StateDict) -> dict[str, Tensor]:
    """The task vector, finetuned - pretrained (Eq. 7).

    Args:
        pretrained: tensor name -> tensor of any shape.
        finetuned: the same names and shapes.

    Returns:
        New tensors for the floating-point names, float32 (float64 if either model is float64).

    Raises:
        StaError: if names or shapes differ or an entry is not finite.
    """
    check_state(pretrained, PRETRAINED)
    check_compatible(pretrained, finetuned, reference_name=PRETRAINED, other_name="the fine-tuned model")
    return {name: difference(pretrained[name], finetuned[name]) for name in floating_names(pretrained)}


def average(
    pretrained: StateDict, finetuned: Mapping[str, StateDict], *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The plain average of the fine-tuned models: theta_0 + (1/N) sum of delta_i.

    Args:
        pretrained: tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes, one or more.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``pretrained``.

    Returns:
        A new model; integer buffers are copied from ``pretrained``.

    Raises:
        StaError: if there is no task, models do not match, or an entry is not finite.
    """
    check_models(pretrained, finetuned)
    return _add_all(pretrained, finetuned, scale=1.0 / len(finetuned), dtype=dtype)


def task_arithmetic(
    pretrained: StateDict,
    finetuned: Mapping[str, StateDict],
    *,
    scale: float = 0.4,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Task arithmetic: theta_0 + scale * sum of delta_i (Eq. 8).

    Args:
        pretrained: tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes, one or more.
        scale: the coefficient lambda; the STA paper's baseline uses 0.4.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``pretrained``.

    Returns:
        A new model; integer buffers are copied from ``pretrained``.

    Raises:
        StaError: if ``scale`` is not finite, there is no task, models do not match, or an entry is not
            finite.
    """
    scale = check_scale(scale)
    check_models(pretrained, finetuned)
    return _add_all(pretrained, finetuned, scale=scale, dtype=dtype)


@torch.no_grad()
def negate(
    model: StateDict,
    pretrained: StateDict,
    finetuned: StateDict,
    *,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Forgetting by task arithmetic: theta_k - scale * delta.

    Args:
        model: the model that shall forget; tensor name -> tensor of any shape.
        pretrained: the model that ``finetuned`` started from; the same names and shapes.
        finetuned: the model fine-tuned on the task to forget.
        scale: the coefficient gamma.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``model``.

    Returns:
        A new model; integer buffers are copied from ``model``.

    Raises:
        StaError: if ``scale`` is not finite, models do not match, or an entry is not finite.
    """
    scale = check_scale(scale)
    check_dtype(dtype)
    check_triple(model, pretrained, finetuned)
    result: dict[str, Tensor] = {}
    for name, base in model.items():
        if not base.is_floating_point():
            result[name] = base.detach().clone()
            continue
        delta = difference(pretrained[name], finetuned[name]).to(base.device)
        work = working_dtype(base, delta)
        total = base.detach().to(work) - scale * delta.to(work)
        result[name] = check_result(total.to(dtype or base.dtype), name)
    return result


@torch.no_grad()
def change_size(pretrained: StateDict, merged: StateDict) -> dict[str, float]:
    """How far a merged model is from the pretrained one, over all floating-point entries.

    Args:
        pretrained: tensor name -> tensor of any shape.
        merged: the same names and shapes.

    Returns:
        ``norm``, the Euclidean norm of the difference; ``relative_norm``, that norm divided by the norm of
        the pretrained weights (infinite if those are all zero and the others are not); ``changed``, the share
        of entries that differ.

    Raises:
        StaError: if names or shapes differ or an entry is not finite.
    """
    check_state(pretrained, PRETRAINED)
    check_compatible(pretrained, merged, reference_name=PRETRAINED, other_name="the merged model")
    change = weight = 0.0
    changed = entries = 0
    for name in floating_names(pretrained):
        base = pretrained[name].detach().reshape(-1)
        other = merged[name].detach().reshape(-1).to(base.device)
        entries += base.numel()
        for piece in pieces(base):
            old, new = to_double(base[piece]), to_double(other[piece])
            change += float((new - old).square().sum())
            weight += float(old.square().sum())
            changed += int((new != old).sum())
    norm, size = math.sqrt(change), math.sqrt(weight)
    relative = norm / size if size else math.inf if norm else 0.0
    return {"norm": norm, "relative_norm": relative, "changed": changed / entries if entries else 0.0}


def difference(pretrained: Tensor, finetuned: Tensor) -> Tensor:
    """One tensor of the task vector (Eq. 7), in its working type, on the device of ``pretrained``."""
    work = working_dtype(pretrained, finetuned)
    return finetuned.detach().to(pretrained.device, work) - pretrained.detach().to(work)


def check_models(pretrained: StateDict, finetuned: Mapping[str, StateDict]) -> None:
    """Whether every fine-tuned model matches the pretrained one.

    Raises:
        StaError: names the task and the tensors; also if there is no task.
    """
    check_state(pretrained, PRETRAINED)
    if not isinstance(finetuned, Mapping):
        raise StaError(
            f"finetuned must map task names to state dicts, and is a {type(finetuned).__name__}. "
            "For example {'mnist': state_dict}."
        )
    if not finetuned:
        raise StaError("there is nothing to merge: give at least one fine-tuned model.")
    for task, model in finetuned.items():
        check_compatible(
            pretrained, model, reference_name=PRETRAINED, other_name=f"the model fine-tuned on '{task}'"
        )


def check_triple(model: StateDict, pretrained: StateDict, finetuned: StateDict) -> None:
    """Whether the three models of a forgetting match one another.

    Raises:
        StaError: names the model and the tensors that differ.
    """
    check_state(pretrained, PRETRAINED)
    for other, name in ((model, "the model that shall forget"), (finetuned, "the fine-tuned model")):
        check_compatible(pretrained, other, reference_name=PRETRAINED, other_name=name)


@torch.no_grad()
def _add_all(
    pretrained: StateDict, finetuned: Mapping[str, StateDict], *, scale: float, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    check_dtype(dtype)
    tasks = sorted(finetuned)  # the order of a sum changes its last digit: the order of a dict must not
    result: dict[str, Tensor] = {}
    for name, base in pretrained.items():
        if not base.is_floating_point():
            result[name] = base.detach().clone()
            continue
        tuned = [finetuned[task][name] for task in tasks]
        work = working_dtype(base, *tuned)
        total = torch.zeros_like(base, dtype=work, memory_format=torch.contiguous_format)
        for tensor in tuned:
            total += difference(base, tensor)
        total = base.detach().to(work) + scale * total
        result[name] = check_result(total.to(dtype or base.dtype), name)
    return result
