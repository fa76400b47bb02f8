"""What one chunk of samples leaves behind in its forward pass, for the backward pass to collect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sta_lightning.arithmetic.taylor.ledger import Ledger

Collect = Callable[..., None]


class Tape:
    """The way from a function that ``vmap`` sees once per sample down to the tensors of the whole chunk.

    Args:
        ledger: Where the gradients go.
        samples: B, how many samples the chunk has.

    Attributes:
        ledger: As given.
        samples: As given.
        sample: The present sample's image as ``vmap`` shows it, which carries the chunk's
            dimension.
        tapped: Parameters that a rule has taken.
        copies: Parameters of which every sample has a copy, and the copies.
        nodes: The nodes of the autograd graph through which parameters may be used.
    """

    sample: Tensor

    def __init__(self, ledger: Ledger, samples: int) -> None:
        self.ledger = ledger
        self.samples = samples
        self.tapped: set[str] = set()
        self.copies: dict[str, Tensor] = {}
        self.nodes: set[Any] = set()

    def release(self) -> None:
        """Let go of the graph."""
        self.copies.clear()
        self.nodes.clear()

    def take(self, parameter: Tensor | None) -> str | None:
        """Note a use of a scored parameter by a rule, and return its name; None where there is no parameter."""
        name = self.ledger.name(parameter)
        if name is not None:
            self.ledger.use(name)
            self.tapped.add(name)
        return name

    def whole(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Run a function on the whole chunk, beneath ``vmap``.

        Args:
            function: Maps tensors ``[B, ...]`` to one tensor ``[B, ...]``.
            tensors: As ``vmap`` shows them, without the chunk's dimension.

        Returns:
            The result, as ``vmap`` shows it.
        """
        result: Tensor = _Beneath.apply(function, self.sample, *tensors)
        return result

    def copy(self, name: str) -> Tensor:
        """A parameter with one copy per sample, made once per chunk; autograd adds up its uses for each sample."""
        if name not in self.copies:
            self.ledger.use(name)
            # The first use may be under no_grad and a later one not.
            with torch.enable_grad():
                self.copies[name] = self.whole(
                    lambda: self._known(_Copy.apply(self, name, self.ledger.leaves[name]))
                )
        return self.copies[name]

    def tap(self, output: Tensor, names: Sequence[str | None], collect: Collect, *saved: Tensor) -> Tensor:
        """Have ``collect(gradient of output, *saved)`` called when the backward pass comes by.

        Args:
            output: A tensor ``[B * ..., ...]`` of the whole chunk, fresh and not a view of another.
            names: The parameters whose gradients ``collect`` makes, so that the graph shows them to
                be used here.
            collect: Gives gradients to the ledger.
            saved: What it needs; kept no longer than autograd keeps its own.

        Returns:
            ``output`` itself.
        """
        leaves = [self.ledger.leaves[name] for name in names if name is not None]
        return self._known(
            _Tap.apply(output, collect, len(leaves), *leaves, *(tensor.detach() for tensor in saved))
        )

    def _known(self, result: Any) -> Tensor:
        tensor: Tensor = result
        if tensor.grad_fn is not None:
            self.nodes.add(tensor.grad_fn)
        return tensor


class _Beneath(torch.autograd.Function):
    """A function of one sample whose rule for ``vmap`` is to run another on the whole chunk."""

    @staticmethod
    def forward(function: Callable[..., Tensor], sample: Tensor, *tensors: Tensor) -> Tensor:
        raise RuntimeError("a part of the module has left the pass over the samples")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass  # there is nothing to differentiate here: autograd follows what runs on the whole chunk

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        function: Callable[..., Tensor],
        sample: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, int]:
        first = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims[2:], strict=True)
        ]
        return function(*first), 0


class _Copy(torch.autograd.Function):
    """A parameter as ``[B, *shape]``, without memory; its gradient is one gradient per sample."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, name: str, leaf: Tensor) -> Tensor:
        ctx.ledger, ctx.name = tape.ledger, name
        return leaf.expand(tape.samples, *leaf.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.ledger.add(ctx.name, gradients[0])
        return None, None, None


class _Tap(torch.autograd.Function):
    """The identity, in place; on the way back it shows the gradient to the function that collects it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, collect: Collect, parameters: int, *tensors: Tensor) -> Tensor:
        ctx.collect = collect
        ctx.nothing = (None,) * (2 + len(tensors))
        ctx.save_for_backward(*tensors[parameters:])
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.collect(gradients[0], *ctx.saved_tensors)
        return (gradients[0] if ctx.needs_input_grad[0] else None, *ctx.nothing)
