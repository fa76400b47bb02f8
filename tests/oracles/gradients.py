"""Sums of a power of every sample's gradient by definition: float64 backward passes."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def by_definition(module: nn.Module, images: Tensor, targets: Tensor, power: int = 1) -> dict[str, Tensor]:
    """Σⱼ |∂L(xⱼ, yⱼ)/∂θ|ᵖ of every parameter; zero where the loss does not depend on it."""
    module = deepcopy(module).double().requires_grad_(True).eval()
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in module.named_parameters()}
    for image, target in zip(images.double(), targets, strict=True):
        loss = F.cross_entropy(module(image[None]), target[None])
        gradients = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
        for gradient, total in zip(gradients, sums.values(), strict=True):
            if gradient is not None:
                total += gradient.abs() ** power
    return sums


def assert_by_definition(found: dict[str, Tensor], expected: dict[str, Tensor], share: float = 1e-5) -> None:
    """Every tensor within ``share`` of its largest entry, and 1e-4 of each that is not tiny."""
    assert found.keys() == expected.keys()
    # A bias that attention is invariant to has no gradient, but for rounding.
    largest = max(float(tensor.max()) for tensor in expected.values())
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        scale = float(expected[name].max())
        if scale < 1e-12 * largest:
            assert float(tensor.max()) < 1e-6 * largest
            continue
        torch.testing.assert_close(tensor.double(), expected[name], rtol=0, atol=share * scale, msg=name)
        torch.testing.assert_close(
            tensor.double(), expected[name], rtol=1e-4, atol=share * scale / 10, msg=name
        )
    assert sum(float(tensor.sum()) for tensor in found.values()) > 0
