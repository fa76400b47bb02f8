"""Sums of every sample's own gradient: the Taylor importance and the Fisher information."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from sta_lightning.arithmetic.surroundings import check_parameters, exact, plain
from sta_lightning.errors import StaError

_log = logging.getLogger(__name__)

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Maps the outputs ``[1, ...]`` and the target ``[1]`` of one sample to its scalar loss."""
Precision = Literal["float32", "bf16"]
Parameters = dict[str, Tensor]

_CHUNK_ON_GPU = 8


def gradient_sums(
    module: nn.Module,
    loss_fn: LossFunction,
    images: Tensor,
    targets: Tensor,
    *,
    names: Collection[str],
    power: Literal[1, 2] = 1,
    precision: Precision = "float32",
    chunk_size: int | None = None,
) -> Parameters:
    """Sum |∂L(xⱼ, yⱼ; θ)/∂θ|ᵖ over samples, the power taken per sample (Eq. 10 and 11).

    Times |θ| it is the paper's loss preservation, times |δ| that along the task vector; with
    ``power=2`` and a cross-entropy it is the diagonal of the empirical Fisher information (at the
    true labels). The gradient of a batch's loss gives another, wrong number. A sum and no mean, so
    that parts of the samples add up.

    The arithmetic is float32 (no TensorFloat-32) unless ``precision`` says otherwise, whatever the
    weights' type and whatever autocast or inference mode surrounds the call. The module is left as
    it was: its weights, ``.grad``, training flags and the random state do not change, and no hook
    of a wrapper such as DDP runs.

    Args:
        module: Maps a batch of images ``[B, ...]`` to outputs ``[B, ...]``; it runs in evaluation
            mode and sees each sample as a batch of one.
        loss_fn: The loss of one sample, of the module's outputs and its target.
        images: Samples ``[S, ...]``, on the device of the module; S may be 0.
        targets: True labels ``[S]``.
        names: Parameters of ``module``, as ``named_parameters`` calls them.
        power: What the gradient's absolute value is raised to.
        precision: ``"float32"``, or ``"bf16"``: forward and backward under bfloat16 autocast, added
            up in float32.
        chunk_size: Samples that share one pass of ``vmap(grad)``, which holds a gradient of every
            parameter for each of them; halved where the memory is too small. 1 is a backward pass
            for each sample: as quick on a CPU, and taken, too, for what ``vmap`` cannot follow.
            None is 1 on a CPU and 8 elsewhere. The results differ by float32 rounding.

    Returns:
        One float32 tensor ≥ 0 per name, with the parameter's shape.

    Raises:
        ValueError: The chunk size is below 1, the precision is unknown, or a name is not a
            floating-point parameter of the module.
    """
    if chunk_size is None:
        chunk_size = 1 if images.device.type == "cpu" else _CHUNK_ON_GPU
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}.")
    _check_precision(precision)
    check_parameters(module, names)
    with exact(module, images.device), torch.enable_grad():
        scored, state, sums = _parts(module, names)

        def loss(parameters: Parameters, image: Tensor, target: Tensor) -> Tensor:
            with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                outputs: Any = functional_call(module, (parameters, state), (image.unsqueeze(0),))
            if isinstance(outputs, Tensor) and outputs.is_floating_point():
                outputs = outputs.float()
            return loss_fn(outputs, target.unsqueeze(0))

        images, targets, start = plain(images), plain(targets), 0
        chunk_size = min(chunk_size, max(1, len(images)))
        while chunk_size > 1 and start < len(images):
            some = slice(start, start + chunk_size)
            try:
                # The fused kernels of attention have no rule for vmap.
                with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                    found = vmap(grad(loss), in_dims=(None, 0, 0))(scored, images[some], targets[some])
            except torch.OutOfMemoryError:
                chunk_size //= 2
                _log.info("The device's memory is too small; %d samples at a time instead.", chunk_size)
            except RuntimeError as error:
                # What vmap says of an operation without a batching rule, of random numbers and of
                # control flow that depends on the data. A module that is itself at fault fails in
                # the loop too, and that error goes out.
                _log.info("vmap cannot follow %s (%s); sample by sample.", type(module).__name__, error)
                chunk_size = 1
            else:
                for name, gradients in found.items():
                    sums[name].add_(gradients.abs().pow_(power).sum(0))
                start += chunk_size
        with _adding(scored, sums, power):
            for image, target in zip(images[start:], targets[start:], strict=True):
                _backward(loss(scored, image, target), scored)
        return sums


class SampleLossModule(nn.Module):
    """A module whose forward is a loss of it: of a sample, the sum over what ``loss`` returns."""

    def __init__(self, module: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.loss = loss

    def forward(self, sample: Any) -> Tensor:
        """Return the sample's loss, a scalar in float32."""
        value = self.loss(sample)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise StaError(
                f"a loss must return a floating-point tensor, and this one returned a {type(value).__name__}."
            )
        return value.float().sum()


def loss_gradient_sums(
    module: SampleLossModule,
    samples: Iterable[Any],
    *,
    names: Collection[str],
    power: Literal[1, 2] = 1,
    precision: Precision = "float32",
) -> Parameters:
    """:func:`gradient_sums` of a loss of one's own, for samples of any form.

    Args:
        module: Maps a sample to its loss; left as it was.
        samples: What ``module`` takes, one at a time.
        names: As for :func:`gradient_sums`, as for the following.
        power: What the gradient's absolute value is raised to.
        precision: ``"float32"`` or ``"bf16"``.

    Returns:
        One float32 tensor ≥ 0 per name, with the parameter's shape.

    Raises:
        StaError: The loss returns something else than a floating-point tensor.
        ValueError: The precision is unknown, or a name is not a floating-point parameter.
    """
    _check_precision(precision)
    check_parameters(module, names)
    device = next(module.parameters()).device
    with exact(module, device), torch.enable_grad():
        scored, state, sums = _parts(module, names)
        with _adding(scored, sums, power):
            for sample in samples:
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                    value = functional_call(module, (scored, state), (sample,))
                _backward(value, scored)
        return sums


def _check_precision(precision: str) -> None:
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision must be 'float32' or 'bf16', not {precision!r}.")


def _parts(module: nn.Module, names: Collection[str]) -> tuple[Parameters, Parameters, Parameters]:
    """The parameters to differentiate by, all other tensors, and sums that are zero."""
    state = {n: plain(t) for n, t in [*module.named_parameters(), *module.named_buffers()]}
    scored = {n: state.pop(n).requires_grad_() for n in names}
    return scored, state, {n: torch.zeros_like(t, requires_grad=False) for n, t in scored.items()}


def _backward(value: Tensor, scored: Parameters) -> None:
    if value.requires_grad:  # not where no scored parameter is used
        torch.autograd.backward(value, inputs=list(scored.values()))


@contextmanager
def _adding(scored: Parameters, sums: Parameters, power: Literal[1, 2]) -> Iterator[None]:
    """Add each gradient to the sums and drop it as soon as a backward pass has it."""
    # Fresh pages for every gradient cost as much as the addition.
    work = torch.empty_like(max(scored.values(), key=torch.numel, default=torch.empty(0)).detach().flatten())

    def adder(total: Tensor) -> Callable[[Tensor], None]:
        def add(leaf: Tensor) -> None:
            gradient, leaf.grad = leaf.grad, None
            if gradient is not None and power == 2:
                total.addcmul_(gradient, gradient)
            elif gradient is not None:
                # Not in place: it may share its memory with one that is still on its way back.
                total.add_(torch.abs(gradient, out=work[: total.numel()].view(total.shape)))

        return add

    hooks: list[Any] = [
        leaf.register_post_accumulate_grad_hook(adder(sums[name]))  # type: ignore[no-untyped-call]
        for name, leaf in scored.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
