"""Exact per-sample first-order Taylor importance (Eq. 10 and 11 of the paper)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

_log = logging.getLogger(__name__)

LossFunction = Callable[[Tensor, Tensor], Tensor]


def taylor_importance(
    module: nn.Module,
    loss_fn: LossFunction,
    images: Tensor,
    targets: Tensor,
    *,
    names: Collection[str],
    direction: Mapping[str, Tensor] | None = None,
    chunk_size: int = 8,
) -> dict[str, Tensor]:
    """Sum |θ · ∂L(xⱼ, yⱼ; θ)/∂θ| over samples, the absolute value taken per sample (Eq. 10 and 11).

    The gradient of a batch's mean loss gives another, wrong number, so each sample has a gradient of its own. The
    arithmetic is float32 (no TensorFloat-32) whatever the weights' type and whatever autocast or inference mode
    surrounds the call. The module is left as it was: its weights, ``.grad``, training flags and the random state do not change.

    Args:
        module: Maps a batch of images ``[B, ...]`` to outputs ``[B, ...]``; it runs in evaluation mode.
        loss_fn: Maps the outputs ``[1, ...]`` and target ``[1]`` of one sample to its scalar loss.
        images: Samples ``[S, ...]``, on the device of the module; S may be 0.
        targets: True labels ``[S]``.
        names: Parameters of ``module`` to score, as ``named_parameters`` calls them.
        direction: What multiplies the gradient, by parameter name; the weights θ themselves where it is None. With
            task vectors δ here the result is the Taylor term of what a mask removes.
        chunk_size: Samples differentiated at once, which takes memory for that many gradients of all the scored
            parameters. 1 is a plain loop; more goes through ``torch.func.vmap``, and falls back to the loop for a
            module that ``vmap`` cannot transform. The result is the same to float32 rounding.

    Returns:
        One float32 tensor ≥ 0 per name, with the parameter's shape.

    Raises:
        ValueError: The chunk size is below 1, or a name is not a floating-point parameter of the module.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}.")
    # Inference tensors cannot take part in autograd, and enable_grad does not end inference mode: leave it first.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(images.device.type, enabled=False),
        sdpa_kernel(
            SDPBackend.MATH
        ),  # the fused attention kernels have no batching rule: slow, with a warning
        _full_precision(),
        _evaluation_mode(module),
    ):
        parameters = dict(module.named_parameters())
        foreign = [n for n in names if n not in parameters or not parameters[n].is_floating_point()]
        if foreign:
            raise ValueError(
                f"Not floating-point parameters of {type(module).__name__}: {', '.join(foreign)}."
            )
        state = {n: _plain(t) for n, t in [*parameters.items(), *module.named_buffers()]}
        scored = {n: state.pop(n) for n in names}

        def loss(weights: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
            outputs = functional_call(module, (weights, state), (image.unsqueeze(0),))
            return loss_fn(outputs, target.unsqueeze(0))

        total = _absolute_gradients(loss, scored, _plain(images), _plain(targets), chunk_size)
        factor = scored if direction is None else {n: direction[n].to(images.device).float() for n in names}
        return {n: total[n] * factor[n].abs() for n in names}


def _absolute_gradients(
    loss: Callable[[dict[str, Tensor], Tensor, Tensor], Tensor],
    weights: dict[str, Tensor],
    images: Tensor,
    targets: Tensor,
    chunk_size: int,
) -> dict[str, Tensor]:
    """Sum |∂L/∂θ| over samples, some at a time; |θ| is the same for all of them and is multiplied in afterwards."""
    if chunk_size > 1 and len(images) > 1:
        total = {n: torch.zeros_like(t) for n, t in weights.items()}
        per_sample = vmap(grad(loss), in_dims=(None, 0, 0))
        try:
            for some, labels in zip(
                torch.split(images, chunk_size), torch.split(targets, chunk_size), strict=True
            ):
                gradients = per_sample(weights, some, labels)
                for name, tensor in total.items():
                    tensor += gradients.pop(name).abs_().sum(0)
            return total
        except RuntimeError as error:
            # What vmap says of an operation without a batching rule, of random numbers and of data-dependent
            # control flow. A module that is at fault itself fails in the loop too, and that error goes out.
            _log.info(
                "torch.func.vmap cannot differentiate this module (%s); sample by sample instead.", error
            )
    total = {n: torch.zeros_like(t) for n, t in weights.items()}
    leaves = {n: t.requires_grad_() for n, t in weights.items()}
    for image, target in zip(images, targets, strict=True):
        gradients = torch.autograd.grad(loss(leaves, image, target), list(leaves.values()), allow_unused=True)
        for tensor, gradient in zip(total.values(), gradients, strict=True):
            if gradient is not None:
                tensor += gradient.abs()
    for tensor in weights.values():
        tensor.requires_grad_(False)
    return total


def _plain(tensor: Tensor) -> Tensor:
    """A detached float32 view (integers as they are) that autograd may use, even of an inference tensor."""
    tensor = tensor.detach()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute products of float32 numbers in float32: convolutions on a GPU have fewer digits by default."""
    kinds: Any = torch.backends
    places = (kinds.cuda.matmul, kinds.cudnn.conv, kinds.mkldnn.matmul, kinds.mkldnn.conv)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch every submodule to evaluation mode, and each back to what it was."""
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, flag in training.items():
            child.training = flag
