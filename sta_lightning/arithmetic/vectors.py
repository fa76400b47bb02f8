"""Task vectors (Eq. 7), how far they conflict, and how far a merged model is from its origin."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sta_lightning.arithmetic.checks import check_compatible, check_state
from sta_lightning.arithmetic.memory import PRETRAINED, check_models
from sta_lightning.arithmetic.states import StateDict, pieces, to_double, weight_names, working_dtype


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
    return {name: difference(pretrained[name], finetuned[name]) for name in weight_names(pretrained)}


@torch.no_grad()
def change_size(pretrained: StateDict, merged: StateDict) -> dict[str, float]:
    """How far a merged model is from the pretrained one, over all floating-point entries.

    Args:
        pretrained: tensor name -> tensor of any shape.
        merged: the same names and shapes.

    Returns:
        ``norm``, the Euclidean norm of the difference; ``relative_norm``, that norm divided by the
        norm of the pretrained weights (infinite if those are all zero and the others are not);
        ``changed``, the share of entries that differ.

    Raises:
        StaError: if names or shapes differ or an entry is not finite.
    """
    check_state(pretrained, PRETRAINED)
    check_compatible(pretrained, merged, reference_name=PRETRAINED, other_name="the merged model")
    change = weight = 0.0
    changed = entries = 0
    for name in weight_names(pretrained):
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


@torch.no_grad()
def relative_size(
    pretrained: StateDict, finetuned: Mapping[str, StateDict], merged: StateDict
) -> float | None:
    """How long the merged task vector is beside the sum of the task vectors, over all weights.

    Args:
        pretrained: tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes.
        merged: likewise.

    Returns:
        The ratio of the Euclidean norms: 1/N for the average of N, the coefficient for task
        arithmetic; None where the sum is zero.

    Raises:
        StaError: if models do not match or an entry is not finite.
    """
    check_models(pretrained, {**finetuned, "the merged model": merged})
    change = whole = 0.0
    for name in weight_names(pretrained):
        total = torch.zeros_like(to_double(pretrained[name]))
        for model in finetuned.values():
            total += to_double(difference(pretrained[name], model[name]))
        whole += float(total.square().sum())
        change += float(to_double(difference(pretrained[name], merged[name])).square().sum())
    return math.sqrt(change / whole) if whole else None


def difference(pretrained: Tensor, finetuned: Tensor) -> Tensor:
    """One tensor of the task vector (Eq. 7), in its working type, where ``pretrained`` is."""
    work = working_dtype(pretrained, finetuned)
    return finetuned.detach().to(pretrained.device, work) - pretrained.detach().to(work)


@torch.no_grad()
def sign_conflict(pretrained: StateDict, finetuned: Mapping[str, StateDict]) -> dict[str, dict[str, float]]:
    """Share of the entries at which two task vectors have opposite signs, for every pair of tasks.

    Args:
        pretrained: tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes.

    Returns:
        Task -> task -> share in [0, 1] of the entries that are not zero in both; 0 where there is
        no such entry. 0.5 is what two unrelated vectors have.

    Raises:
        StaError: if models do not match or an entry is not finite.
    """
    check_models(pretrained, finetuned)
    tasks = list(finetuned)
    opposite = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    both = torch.zeros_like(opposite)
    for name in weight_names(pretrained):
        signs = torch.stack(
            [difference(pretrained[name], finetuned[task][name]).reshape(-1).sign() for task in tasks]
        ).cpu()
        for piece in torch.split(signs, 1 << 22, dim=1):
            found = sign_counts(piece)
            opposite += found[0]
            both += found[1]
    share = torch.where(both > 0, opposite / both.clamp(min=1), 0.0)
    return {
        first: {second: float(share[row, column]) for column, second in enumerate(tasks)}
        for row, first in enumerate(tasks)
    }


def sign_counts(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """At how many entries two vectors have opposite signs, and at how many neither is zero.

    Args:
        vectors: ``[N, entries]``, at most 2^24 entries: their counts are exact in float32, in which
            products are quick.

    Returns:
        Float64 ``[N, N]`` each.
    """
    signs = vectors.sign().float()
    present = signs.abs()
    agreement, both = (signs @ signs.T).double(), (present @ present.T).double()
    return (both - agreement) / 2, both
