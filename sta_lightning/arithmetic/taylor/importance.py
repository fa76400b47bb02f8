"""The public functions: what is added up of every sample's gradient, and what it is multiplied with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sta_lightning.arithmetic.surroundings import check_parameters, chunk_of, exact, plain
from sta_lightning.arithmetic.taylor.ledger import Ledger, Power
from sta_lightning.arithmetic.taylor.loop import sample_by_sample
from sta_lightning.arithmetic.taylor.watched import chunk_by_chunk

_log = logging.getLogger(__name__)

LossFunction = Callable[[Tensor, Tensor], Tensor]
Precision = Literal["float32", "bf16"]


def taylor_importance(
    module: nn.Module,
    loss_fn: LossFunction,
    images: Tensor,
    targets: Tensor,
    *,
    names: Collection[str],
    direction: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
    precision: Precision = "float32",
) -> dict[str, Tensor]:
    """Sum |θ · ∂L(xⱼ, yⱼ; θ)/∂θ| over samples, the absolute value taken per sample (Eq. 10 and 11).

    The gradient of a batch's mean loss gives another, wrong number, so each sample has a gradient
    of its own. A chunk of samples shares one forward and one backward pass all the same: the pass
    hands every layer each sample's own output gradient, from which the layer's weight gradient of
    one sample after the other is made, its absolute value added and the gradient dropped
    (Goodfellow, "Efficient Per-Example Gradient Computations", 2015, for every sample's norm; here
    for the absolute value of every entry). That costs what the batched weight gradient costs. See
    :mod:`sta_lightning.arithmetic.taylor.watched` for the layers with such a rule, for what happens
    to all others, and for why no use of a parameter can be overlooked.

    The arithmetic is float32 (no TensorFloat-32) unless ``precision`` says otherwise, whatever the
    weights' type and whatever autocast or inference mode surrounds the call. The module is left as
    it was: its weights, ``.grad``, training flags and the random state do not change.

    Memory: the weights, one float32 accumulator of their size, the activations of ``chunk_size``
    samples, and one layer's gradient. To that ``chunk_size`` gradients of each parameter without a
    rule are added.

    Args:
        module: Maps a batch of images ``[B, ...]`` to outputs ``[B, ...]``; it runs in evaluation
            mode and sees each sample as a batch of one, so that it cannot mix samples.
        loss_fn: Maps the outputs ``[1, ...]`` and target ``[1]`` of one sample to its scalar loss.
        images: Samples ``[S, ...]``, on the device of the module; S may be 0.
        targets: True labels ``[S]``.
        names: Parameters of ``module`` to score, as ``named_parameters`` calls them.
        direction: What multiplies the gradient, by parameter name; the weights θ themselves where
            it is None. With task vectors δ here the result is the Taylor term of what a mask
            removes.
        chunk_size: Samples that go through the module together, which takes memory for their
            activations; None is 8 on a CPU, and 32 elsewhere, where fewer do not fill the device.
            It is halved where the device's memory is too small. 1 is a plain loop of backward
            passes; more is quicker, and falls back to the loop for a module that cannot be followed
            (control flow that depends on the data, TorchScript, an operation that
            ``torch.func.vmap`` does not know). The result is the same to float32 rounding. Which
            way was taken is logged, halving and the fallback at level INFO, the rest at DEBUG.
        precision: ``"float32"``, or ``"bf16"``: forward and backward under bfloat16 autocast, added
            up in float32.

    Returns:
        One float32 tensor ≥ 0 per name, with the parameter's shape.

    Raises:
        ValueError: The chunk size is below 1, the precision is unknown, or a name is not a
            floating-point parameter of the module.
    """
    total = _gradient_powers(
        module, loss_fn, images, targets, 1, names=names, chunk_size=chunk_size, precision=precision
    )
    factors = dict(module.named_parameters()) if direction is None else direction
    with torch.inference_mode(False), torch.no_grad():
        for name, tensor in total.items():
            # |θ| is the same for all samples.
            tensor.mul_(factors[name].detach().to(images.device).float().abs())
    return total


def fisher_information(
    module: nn.Module,
    loss_fn: LossFunction,
    images: Tensor,
    targets: Tensor,
    *,
    names: Collection[str],
    chunk_size: int | None = None,
    precision: Precision = "float32",
) -> dict[str, Tensor]:
    """Sum (∂L(xⱼ, yⱼ; θ)/∂θ)² over samples, the square taken per sample: the diagonal of the empirical Fisher information.

    "Empirical" since yⱼ is the true label and no draw from the model's own distribution, and
    ``loss_fn`` has to be the negative log-likelihood of it, a cross-entropy. It is a sum and no
    mean, as :func:`taylor_importance` is, so that parts of the samples add up. The way it is
    computed, what it costs and what it leaves as it was are those of :func:`taylor_importance`: for
    the square, too, each sample's gradient is needed, and the square of a batch's gradient is
    another, wrong number.

    Args:
        module: Maps a batch of images ``[B, ...]`` to outputs ``[B, ...]``; it runs in evaluation
            mode.
        loss_fn: Maps the outputs ``[1, ...]`` and target ``[1]`` of one sample to its scalar loss.
        images: Samples ``[S, ...]``, on the device of the module; S may be 0.
        targets: True labels ``[S]``.
        names: Parameters of ``module``, as ``named_parameters`` calls them.
        chunk_size: Samples that go through the module together; see :func:`taylor_importance`.
        precision: ``"float32"``, or ``"bf16"``: forward and backward under bfloat16 autocast,
            squared and added up in float32.

    Returns:
        One float32 tensor ≥ 0 per name, with the parameter's shape.

    Raises:
        ValueError: The chunk size is below 1, the precision is unknown, or a name is not a
            floating-point parameter of the module.
    """
    return _gradient_powers(
        module, loss_fn, images, targets, 2, names=names, chunk_size=chunk_size, precision=precision
    )


def _gradient_powers(
    module: nn.Module,
    loss_fn: LossFunction,
    images: Tensor,
    targets: Tensor,
    power: Power,
    *,
    names: Collection[str],
    chunk_size: int | None,
    precision: Precision,
) -> dict[str, Tensor]:
    """Sum |∂L/∂θ|ᵖ over samples."""
    chunk_size = chunk_of(chunk_size, images)
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision must be 'float32' or 'bf16', not {precision!r}.")
    with exact(module, images.device), torch.enable_grad():
        check_parameters(module, names)
        state = {n: plain(t) for n, t in [*module.named_parameters(), *module.named_buffers()]}
        scored = {n: state.pop(n).requires_grad_() for n in names}

        def loss(image: Tensor, target: Tensor) -> Tensor:
            """Loss of one sample, through the scored weights."""
            with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                outputs = functional_call(module, (scored, state), (image.unsqueeze(0),))
            return loss_fn(_wide(outputs), target.unsqueeze(0))

        ledger = Ledger(scored, power)
        _add_samples(module, loss, ledger, plain(images), plain(targets), chunk_size)
        return ledger.total


def _add_samples(
    module: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    ledger: Ledger,
    images: Tensor,
    targets: Tensor,
    chunk_size: int,
) -> None:
    """Give every sample's gradients to the ledger, some samples at a time."""
    chunk_size = min(chunk_size, len(images))
    if chunk_size <= 1:
        _log.debug("%d samples, one backward pass for each.", len(images))
    while chunk_size > 1:
        try:
            _refuse_scripts(module)
            chunk_by_chunk(loss, ledger, images, targets, chunk_size)
            return
        except torch.OutOfMemoryError:
            chunk_size //= 2
            _log.info("The device's memory is too small; %d samples at a time instead.", chunk_size)
        except RuntimeError as error:
            # What vmap says of an operation without a batching rule, of random numbers and of
            # data-dependent control flow, and what the watch says of a use that it has not seen. A
            # module that is at fault itself fails in the loop too, and that error goes out.
            _log.info(
                "Several samples cannot go through %s together (%s); sample by sample instead.",
                type(module).__name__,
                error,
            )
            chunk_size = 1
        # Here, where the error and the graph that it holds on to are gone.
        ledger.clear()
    sample_by_sample(loss, ledger, images, targets)


def _refuse_scripts(module: nn.Module) -> None:
    """TorchScript runs its own interpreter, in which the uses of a weight cannot be seen."""
    scripted = [name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripted:
        raise RuntimeError(f"its part {scripted[0] or 'as a whole'!r} is TorchScript")


def _wide(outputs: Any) -> Tensor:
    """Outputs in float32, in which the loss is computed."""
    if isinstance(outputs, Tensor) and outputs.is_floating_point():
        return outputs.float()
    return cast(Tensor, outputs)
