"""AdaMerging: a coefficient a task, or a task and tensor, learned by making predictions certain.

Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024. Here is what
is computed, as functions of tensors; :class:`sta_lightning.modules.AdaMerging` learns the
coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sta_lightning.arithmetic.states import StateDict, weight_names, working_dtype
from sta_lightning.errors import StaError, listed


def combine(
    pretrained: StateDict, vectors: Mapping[str, StateDict], coefficients: Tensor
) -> dict[str, Tensor]:
    """The merged model, theta_0 + sum of lambda_i * delta_i, differentiable in the coefficients.

    Args:
        pretrained: theta_0; tensor name -> tensor of any shape.
        vectors: task name -> task vector delta_i: tensor name -> tensor, for the floating-point
            names of ``pretrained``.
        coefficients: lambda; shape ``[N]``, one a task (task-wise), ``[N, T]``, one for every task
            and floating-point tensor (tensor-wise, which the authors call layer-wise), or ``[N,
            R]``, one for every task and row of a tensor (:func:`row_counts`; not the authors').
            Rows in the order of ``vectors``, columns in that of ``pretrained``. Taken as they are:
            who wants them within bounds limits them first.

    Returns:
        The merged tensors in their working type, float32 (float64 if one of the models is float64).
        Integer buffers are those of ``pretrained``, not copied.

    Raises:
        StaError: there is no task, the coefficients have another shape, or a task vector lacks a
            tensor or has one of another shape.
    """
    names = weight_names(pretrained)
    if not vectors:
        raise StaError("there is nothing to merge: give at least one task vector.")
    rows = row_counts(pretrained)
    shapes = ((len(vectors),), (len(vectors), len(names)), (len(vectors), sum(rows)))
    if tuple(coefficients.shape) not in shapes:
        raise StaError(
            f"coefficients must have the shape {shapes[0]}, one a task, {shapes[1]}, one for every task and floating-point "
            f"tensor, or {shapes[2]}, one for every task and row, and have {tuple(coefficients.shape)}."
        )
    for task, vector in vectors.items():
        wrong = [name for name in names if name not in vector or vector[name].shape != pretrained[name].shape]
        if wrong:
            raise StaError(
                f"the task vector of '{task}' does not match the pretrained model: missing or of another shape are "
                f"{listed(wrong)}. All must be of one architecture at one input size."
            )
    grid = coefficients if coefficients.ndim == 2 else coefficients[:, None].expand(-1, len(names))
    widths = [1] * len(names) if grid.shape[1] == len(names) else rows
    merged = dict(pretrained)
    # Taken apart at once: indexing would make a gradient as large as the whole grid for every
    # single coefficient.
    for name, columns in zip(names, torch.split(grid, widths, dim=1), strict=True):
        base = pretrained[name]
        shape = () if columns.shape[1] == 1 else (columns.shape[1], *[1] * (base.ndim - 1))
        deltas = [vector[name] for vector in vectors.values()]
        work = working_dtype(base, *deltas)
        # The task vectors are added up first: they are small beside the weights, which would round
        # each of them.
        total: Tensor | None = None
        for delta, factor in zip(deltas, columns.unbind(0), strict=True):
            delta, factor = delta.to(work), factor.reshape(shape).to(work)
            total = factor * delta if total is None else torch.addcmul(total, factor, delta)
        assert total is not None
        merged[name] = base.to(work) + total
    return merged


def row_counts(pretrained: StateDict) -> list[int]:
    """How many entries of its first dimension each floating-point tensor has; 1 for a scalar."""
    return [len(tensor) if (tensor := pretrained[name]).ndim else 1 for name in weight_names(pretrained)]


def entropy(logits: Tensor) -> Tensor:
    """The mean Shannon entropy of the classes' probabilities, in nats.

    For p = softmax(x), and z = x - max(x) with the largest entry m left out, H = log(1 + s) - sum
    of exp(z_i) * z_i / (1 + s), where s = sum of exp(z_i), both over i other than m. No term is
    negative, so nothing cancels: the value and its gradient are exact to rounding even where one
    class is all but certain and sum of p * log p would lose every digit.

    Args:
        logits: Shape ``[..., C]``, one row or more. Minus infinity is a class of probability 0.

    Returns:
        A scalar from 0 to log(C), float32 (float64 for float64 logits).

    Raises:
        StaError: there are no rows or no classes.
    """
    if logits.ndim == 0 or logits.numel() == 0:
        raise StaError(
            f"entropy needs logits [..., C] with one row and one class or more; found {tuple(logits.shape)}."
        )
    values = logits.to(working_dtype(logits))
    place = values.argmax(dim=-1, keepdim=True)
    below = values - values.gather(-1, place)
    # 0 * (-inf) is no number; exp() of the smallest number is 0 as well.
    below = below.clamp(min=torch.finfo(values.dtype).min)
    others = below.exp().scatter(-1, place, 0.0)
    rest = others.sum(dim=-1)
    return (rest.log1p() - (others * below).sum(dim=-1) / (1 + rest)).mean()
