"""The public function, and the surroundings that its arithmetic needs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sta_lightning.arithmetic.taylor.ledger import Ledger
from sta_lightning.arithmetic.taylor.loop import sample_by_sample
from sta_lightning.arithmetic.taylor.watched import chunk_by_chunk

_log = logging.getLogger(__name__)

LossFunction = Callable[[Tensor, Tensor], Tensor]
Precision = Literal["float32", "bf16"]

CHUNK_ON_CPU, CHUNK_ELSEWHERE = 8, 32


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

    The gradient of a batch's mean loss gives another, wrong number, so each sample has a gradient of its own. A chunk of
    samples shares one forward and one backward pass all the same: the pass hands every layer each sample's own output
    gradient, from which the layer's weight gradient of one sample after the other is made, its absolute value added
    and the gradient dropped (Goodfellow, "Efficient Per-Example Gradient Computations", 2015, for every sample's norm; here for
    the absolute value of every entry). That costs what the batched weight gradient costs. See
    :mod:`sta_lightning.arithmetic.taylor.watched` for the layers with such a rule, for what happens to all others, and for why
    no use of a parameter can be overlooked.

    The arithmetic is float32 (no TensorFloat-32) unless ``precision`` says otherwise, whatever the weights' type and
    whatever autocast or inference mode surrounds the call. The module is left as it was: its weights, ``.grad``, training
    flags and the random state do not change.

    Memory: the weights, one float32 accumulator of their size, the activations of ``chunk_size`` samples, and one layer's
    gradient. To that ``chunk_size`` gradients of each parameter without a rule are added.

    Args:
        module: Maps a batch of images ``[B, ...]`` to outputs ``[B, ...]``; it runs in evaluation mode and sees each
            sample as a batch of one, so that it cannot mix samples.
        loss_fn: Maps the outputs ``[1, ...]`` and target ``[1]`` of one sample to its scalar loss.
        images: Samples ``[S, ...]``, on the device of the module; S may be 0.
        targets: True labels ``[S]``.
        names: Parameters of ``module`` to score, as ``named_parameters`` calls them.
        direction: What multiplies the gradient, by parameter name; the weights θ themselves where it is None. With
            task vectors δ here the result is the Taylor term of what a mask removes.
        chunk_size: Samples that go through the module together, which takes memory for their activations; None is 8 on a
            CPU, and 32 elsewhere, where fewer do not fill the device. It is halved where the device's memory is too small.
            1 is a plain loop of backward passes; more is quicker, and falls back to the loop for a module that cannot be
            followed (control flow that depends on the data, TorchScript, an operation that ``torch.func.vmap`` does not
            know). The result is the same to float32 rounding. Which way was taken is logged, halving and the fallback at
            level INFO, the rest at DEBUG.
        precision: ``"float32"``, or ``"bf16"``: forward and backward under bfloat16 autocast, added up in float32.

    Returns:
        One float32 tensor ≥ 0 per name, with the parameter's shape.

    Raises:
        ValueError: The chunk size is below 1, the precision is unknown, or a name is not a floating-point parameter of
            the module.
    """
    if chunk_size is None:
        chunk_size = CHUNK_ON_CPU if images.device.type == "cpu" else CHUNK_ELSEWHERE
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}.")
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision must be 'float32' or 'bf16', not {precision!r}.")
    # Inference tensors cannot take part in autograd, and enable_grad does not end inference mode: leave it first.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(images.device.type, enabled=False),
        _eager(),
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
        scored = {n: state.pop(n).requires_grad_() for n in names}

        def loss(image: Tensor, target: Tensor) -> Tensor:
            """Loss of one sample, through the scored weights."""
            with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                outputs = functional_call(module, (scored, state), (image.unsqueeze(0),))
            return loss_fn(_wide(outputs), target.unsqueeze(0))

        total = _absolute_gradients(module, loss, scored, _plain(images), _plain(targets), chunk_size)
        with torch.no_grad():
            for name, tensor in total.items():
                factor = scored[name] if direction is None else direction[name].to(images.device)
                tensor.mul_(factor.float().abs())
        return total


def _absolute_gradients(
    module: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    weights: dict[str, Tensor],
    images: Tensor,
    targets: Tensor,
    chunk_size: int,
) -> dict[str, Tensor]:
    """Sum |∂L/∂θ| over samples, some at a time; |θ| is the same for all of them and is multiplied in afterwards."""
    ledger = Ledger(weights)
    chunk_size = min(chunk_size, len(images))
    if chunk_size <= 1:
        _log.debug("%d samples, one backward pass for each.", len(images))
    while chunk_size > 1:
        try:
            _refuse_scripts(module)
            chunk_by_chunk(loss, ledger, images, targets, chunk_size)
            return ledger.total
        except torch.OutOfMemoryError:
            chunk_size //= 2
            _log.info("The device's memory is too small; %d samples at a time instead.", chunk_size)
        except RuntimeError as error:
            # What vmap says of an operation without a batching rule, of random numbers and of data-dependent control
            # flow, and what the watch says of a use that it has not seen. A module that is at fault itself fails in the
            # loop too, and that error goes out.
            _log.info(
                "Several samples cannot go through %s together (%s); sample by sample instead.",
                type(module).__name__,
                error,
            )
            chunk_size = 1
        # Here, where the error and the graph that it holds on to are gone.
        ledger.clear()
    sample_by_sample(loss, weights, images, targets, ledger.total)
    return ledger.total


def _refuse_scripts(module: nn.Module) -> None:
    """TorchScript runs its own interpreter, in which the uses of a weight cannot be seen."""
    scripted = [name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripted:
        raise RuntimeError(f"its part {scripted[0] or 'as a whole'!r} is TorchScript")


def _plain(tensor: Tensor) -> Tensor:
    """A detached float32 view (integers as they are) that autograd may use, even of an inference tensor."""
    tensor = tensor.detach()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor.clone() if tensor.is_inference() else tensor


def _wide(outputs: Any) -> Tensor:
    """Outputs in float32, in which the loss is computed."""
    if isinstance(outputs, Tensor) and outputs.is_floating_point():
        return outputs.float()
    return cast(Tensor, outputs)


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


def _eager() -> AbstractContextManager[Any]:
    """Run compiled parts as they were written: inside a compiled graph no use of a weight can be seen."""
    # What compiles is slow to import, and nothing is compiled where nobody has imported it.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


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
