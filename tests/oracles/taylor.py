"""Per-sample Taylor term (Eq. 10 and 11) and Fisher information by definition: one backward pass per sample, in float64."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def by_definition(module: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Σⱼ |θ · ∂L(xⱼ, yⱼ)/∂θ| of every parameter; zero where the loss does not depend on it."""
    return _summed(module, images, targets, lambda parameter, gradient: (parameter * gradient).abs())


def fisher_by_definition(module: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Σⱼ (∂L(xⱼ, yⱼ)/∂θ)² of every parameter; zero where the loss does not depend on it."""
    return _summed(module, images, targets, lambda parameter, gradient: gradient**2)


def _summed(
    module: nn.Module, images: Tensor, targets: Tensor, term: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    module = deepcopy(module).double().requires_grad_(True).eval()
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in module.named_parameters()}
    for image, target in zip(images.double(), targets, strict=True):
        loss = F.cross_entropy(module(image[None]), target[None])
        gradients = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
        for parameter, gradient, total in zip(module.parameters(), gradients, sums.values(), strict=True):
            if gradient is not None:
                total += term(parameter, gradient).detach()
    return sums


def assert_by_definition(found: dict[str, Tensor], expected: dict[str, Tensor], share: float = 1e-5) -> None:
    """Every tensor within ``share`` of its own largest entry, and within 1e-4 of each entry that is not tiny."""
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        scale = float(expected[name].max())
        torch.testing.assert_close(tensor.double(), expected[name], rtol=0, atol=share * scale, msg=name)
        torch.testing.assert_close(
            tensor.double(), expected[name], rtol=1e-4, atol=share * scale / 10, msg=name
        )
    assert sum(float(tensor.sum()) for tensor in found.values()) > 0
