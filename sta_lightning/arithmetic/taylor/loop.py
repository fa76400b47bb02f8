"""The plain way: one backward pass per sample. Slow, right for every module that autograd can differentiate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def sample_by_sample(
    loss: Callable[[Tensor, Tensor], Tensor],
    weights: Mapping[str, Tensor],
    images: Tensor,
    targets: Tensor,
    total: Mapping[str, Tensor],
) -> None:
    """Add every sample's |∂L/∂θ| to ``total``.

    A gradient is added and dropped as soon as the backward pass has it, so that no full set of gradients is ever held.

    Args:
        loss: Maps one image and its target to the scalar loss.
        weights: Leaves that ``loss`` depends on and that require gradients, by name.
        images: Samples ``[S, ...]``.
        targets: Labels ``[S]``.
        total: Float32 accumulators, by the same names; changed in place.

    Raises:
        RuntimeError: What autograd says of reentrant activation checkpointing: its gradients come segment by segment.
    """

    def collect(name: str) -> Callable[[Tensor], None]:
        def add(leaf: Tensor) -> None:
            if leaf.grad is not None:
                # Not in place: the gradient may share its memory with one that is still on its way back.
                total[name].add_(leaf.grad.abs())
                leaf.grad = None

        return add

    leaves = list(weights.values())
    hooks: list[Any] = [
        leaf.register_post_accumulate_grad_hook(collect(name))  # type: ignore[no-untyped-call]
        for name, leaf in weights.items()
    ]
    try:
        for image, target in zip(images, targets, strict=True):
            value = loss(image, target)
            if value.requires_grad:  # not where no scored parameter is used
                torch.autograd.backward(value, inputs=leaves)
    finally:
        for hook in hooks:
            hook.remove()
        for leaf in leaves:
            leaf.grad = None
