"""Several samples in one forward and one backward pass, with each sample's own gradients in view.

**Samples stay apart.** The forward pass is ``torch.func.vmap`` over a function of one sample;
autograd then differentiates the sum of the losses, once. Whatever the module does, it does it to a
batch of one, so that no sample can touch another.

**Every use of a parameter is seen.** A ``TorchFunctionMode`` looks at the arguments of every torch
function:

- a function with a rule (:mod:`sta_lightning.arithmetic.taylor.rules`: linear layers, multi-head
  attention, products with a matrix, convolutions, layer normalisation) computes with the parameter
  as a constant, and taps the gradient of its output on the way back;
- any other function gets, in place of the parameter, one copy of it per sample (an expanded view,
  without memory), for which autograd gives one gradient per sample whatever the function is.

**Nothing can be overlooked.** The parameters enter the pass as leaves that require gradients, and
each of those two ways passes through a known node of the autograd graph. Before the backward pass
the graph is searched for edges into the leaves from any other node: a use that the mode has not
seen (inside a C++ extension, a custom ``autograd.Function``, a higher-order operator) is found
there, because the gradient that a loop would get could come no other way. That ends the attempt
with a RuntimeError, and the caller takes the loop.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from sta_lightning.arithmetic.taylor.attention import attend, multi_head
from sta_lightning.arithmetic.taylor.ledger import Ledger
from sta_lightning.arithmetic.taylor.rules import RULES
from sta_lightning.arithmetic.taylor.tape import Tape

_log = logging.getLogger(__name__)


def chunk_by_chunk(
    loss: Callable[[Tensor, Tensor], Tensor], ledger: Ledger, images: Tensor, targets: Tensor, chunk_size: int
) -> None:
    """Add the power of every sample's ∂L/∂θ to ``ledger.total``.

    Args:
        loss: Maps one image and its target to the scalar loss, through ``ledger.leaves``.
        ledger: Has the leaves and takes the gradients; its sums are of no use after an error.
        images: Samples ``[S, ...]``.
        targets: Labels ``[S]``.
        chunk_size: How many samples go through together.

    Raises:
        RuntimeError: The pass cannot be made in this way, or has used a parameter out of sight.
    """
    described = False
    for some, labels in zip(torch.split(images, chunk_size), torch.split(targets, chunk_size), strict=True):
        tape = Tape(ledger, len(some))
        watch = _Watch(tape)

        def one(image: Tensor, target: Tensor, watch: _Watch = watch) -> Tensor:
            watch.tape.sample = image
            with watch:
                return loss(image, target)

        # The fused kernels have no rule for vmap: an attention that attend() does not get is taken
        # apart.
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            # Of an operation that vmap takes apart into one call per sample; not of interest unless
            # it is most of the work.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            total = vmap(one)(some, labels).sum()
        _check_complete(total, ledger, tape.nodes)
        if not described:
            _log.debug(
                "%d samples, %d at a time; parameters with a rule: %d; others, copied per sample: %s; used several times: %s.",
                len(images),
                chunk_size,
                len(ledger.leaves.keys() & tape.tapped),
                ", ".join(sorted(tape.copies)) or "none",
                ", ".join(ledger.shared) or "none",
            )
            described = True
        # Both hold the graph, which the backward pass gives back piece by piece.
        tape.release()
        if total.requires_grad:
            torch.autograd.backward(total, inputs=list(ledger.leaves.values()))
        ledger.settle()


class _Watch(TorchFunctionMode):
    """Sees every torch function that is called with a scored parameter, and makes it tell each sample's gradient."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if any(self.tape.ledger.name(leaf) for leaf in _leaves((args, kwargs))):
            if _asks(func):
                return func(*args, **kwargs)
            if _may_return_its_argument(func):
                result = func(*args, **kwargs)
                if result is args[0]:
                    return result
            elif func in _RULES:
                result = _RULES[func](self.tape, *args, **kwargs)
                if result is not NotImplemented:
                    return result
            args, kwargs = self._copied(args), self._copied(kwargs)
        if func is F.scaled_dot_product_attention:
            return attend(self.tape, *args, **kwargs)
        return func(*args, **kwargs)

    def _copied(self, value: Any) -> Any:
        """Arguments with one copy per sample in place of each scored parameter."""
        name = self.tape.ledger.name(value)
        if name is not None:
            return self.tape.copy(name)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self._copied, value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._copied, value))
        if isinstance(value, dict):
            return {key: self._copied(part) for key, part in value.items()}
        return value


_RULES = {**RULES, F.multi_head_attention_forward: multi_head}
# Questions about a tensor whose answer is no tensor; a sample's copy would answer the same, but
# count as a use.
_QUESTIONS = {
    getattr(Tensor, name)
    for name in (
        *(
            "size",
            "stride",
            "dim",
            "ndimension",
            "numel",
            "nelement",
            "element_size",
            "get_device",
            "is_contiguous",
        ),
        *("is_floating_point", "is_complex", "is_inference", "is_pinned", "is_shared", "__len__", "__hash__"),
    )
} | {torch.is_floating_point, torch.is_complex, torch.numel, torch.is_inference}
_ATTRIBUTES = {
    getattr(Tensor, name).__get__
    for name in (
        *(
            "shape",
            "dtype",
            "device",
            "ndim",
            "layout",
            "itemsize",
            "nbytes",
            "requires_grad",
            "is_leaf",
            "grad_fn",
        ),
        *(
            "is_cuda",
            "is_cpu",
            "is_mps",
            "is_xpu",
            "is_meta",
            "is_sparse",
            "is_quantized",
            "is_nested",
            "is_mkldnn",
        ),
    )
}
# They return the tensor itself where nothing is to be done.
_CASTS = {getattr(Tensor, name) for name in ("to", "type_as", "contiguous", "float", "cuda", "cpu")}


def _asks(func: Callable[..., Any]) -> bool:
    return func in _QUESTIONS or func in _ATTRIBUTES


def _may_return_its_argument(func: Callable[..., Any]) -> bool:
    return func in _CASTS


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _leaves(part)
    else:
        yield value


def _check_complete(total: Tensor, ledger: Ledger, known: set[Any]) -> None:
    """Search the graph for a use of a parameter that came about out of sight.

    Raises:
        RuntimeError: There is one.
    """
    accumulators = {get_gradient_edge(leaf).node: name for name, leaf in ledger.leaves.items()}
    seen, waiting = set(), [] if total.grad_fn is None else [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following in accumulators and node not in known:
                raise RuntimeError(
                    f"parameter {accumulators[following]!r} takes part out of sight, in {node.name()}"
                )
            if following is not None:
                waiting.append(following)
