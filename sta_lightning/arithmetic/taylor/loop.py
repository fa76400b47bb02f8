"""The plain way: one backward pass per sample. Slow, right for every module that autograd can differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sta_lightning.arithmetic.taylor.ledger import Ledger


def sample_by_sample(
    loss: Callable[[Tensor, Tensor], Tensor], ledger: Ledger, images: Tensor, targets: Tensor
) -> None:
    """Add the power of every sample's ∂L/∂θ to ``ledger.total``.

    A gradient is added and dropped as soon as the backward pass has it, so that no full set of
    gradients is ever held.

    Args:
        loss: Maps one image and its target to the scalar loss, through ``ledger.leaves``.
        ledger: Has the leaves and takes the gradients.
        images: Samples ``[S, ...]``.
        targets: Labels ``[S]``.

    Raises:
        RuntimeError: What autograd says of reentrant activation checkpointing: its gradients come
            segment by segment.
    """

    def collect(name: str) -> Callable[[Tensor], None]:
        def add(leaf: Tensor) -> None:
            if leaf.grad is not None:
                # It may share its memory with one that is still on its way back.
                ledger.add_alone(name, leaf.grad)
                leaf.grad = None

        return add

    leaves = list(ledger.leaves.values())
    hooks: list[Any] = [
        leaf.register_post_accumulate_grad_hook(collect(name))  # type: ignore[no-untyped-call]
        for name, leaf in ledger.leaves.items()
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
