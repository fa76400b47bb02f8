"""How near a model's predictions are to another's, without labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from sta_lightning.arithmetic.states import working_dtype
from sta_lightning.errors import StaError


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """The mean Kullback-Leibler divergence KL(p || q) of the classes' probabilities, in nats.

    p = softmax(target) is whom q = softmax(logits) shall be like; differentiable in both.

    Args:
        target: Finite, of shape ``[..., C]``, one row or more.
        logits: The same shape.

    Returns:
        A scalar, 0 or more up to rounding, float32 (float64 if one of them is float64).

    Raises:
        StaError: the shapes differ, or there are no rows or no classes.
    """
    work = _checked(target, logits)
    p, q = target.to(work).log_softmax(-1), logits.to(work).log_softmax(-1)
    return kl_div(q, p, reduction="none", log_target=True).sum(-1).mean()


def agreement(target: Tensor, logits: Tensor) -> Tensor:
    """The share of rows, 0 to 1, in which both have their largest entry at the same class.

    Takes, and raises, what :func:`divergence` does.
    """
    work = _checked(target, logits)
    return (target.argmax(-1) == logits.argmax(-1)).to(work).mean()


def _checked(target: Tensor, logits: Tensor) -> torch.dtype:
    if target.ndim == 0 or target.numel() == 0 or target.shape != logits.shape:
        raise StaError(
            "predictions are compared as logits [..., C] of one shape, with one row and one class or more; found "
            f"{tuple(target.shape)} and {tuple(logits.shape)}."
        )
    return working_dtype(target, logits)
