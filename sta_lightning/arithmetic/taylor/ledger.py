"""The accumulators, and the books of how often a chunk of samples has used each parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

# Entries of the per-sample gradients of one layer held at once, where several samples share one
# kernel: 256 MiB of float32.
_WORK_ENTRIES = 1 << 26
# A parameter of at most this many entries is added for all samples of a chunk at once.
_SMALL = 1 << 18

Power = Literal[1, 2]
"""1: absolute values of gradients are added up; 2: their squares."""

Operands = Callable[[slice], tuple[Tensor, Tensor]]
_ALL = slice(None)


class Ledger:
    """Adds up Σⱼ |∂L(xⱼ)/∂θ|ᵖ for p = 1 or 2, whose samples come chunk by chunk.

    A parameter that the chunk uses once has its powers added at once, in the middle of the backward
    pass. One that it uses several times (tied weights) has parts of its gradient in several places:
    they are summed for each sample, which takes memory for as many gradients of that parameter as
    the chunk has samples, and added in :meth:`settle`.

    Args:
        leaves: The scored parameters by name: float32 leaves that require gradients.
        power: p.

    Attributes:
        leaves: As given.
        power: As given.
        total: The sums, float32 tensors of the same shapes.
    """

    def __init__(self, leaves: Mapping[str, Tensor], power: Power = 1) -> None:
        self.leaves = dict(leaves)
        self.power = power
        self.total = {name: torch.zeros_like(leaf, requires_grad=False) for name, leaf in leaves.items()}
        self._names = {id(leaf): name for name, leaf in leaves.items()}
        self._uses: Counter[str] = Counter()
        self._parts: dict[str, Tensor] = {}
        self._work: Tensor | None = None

    def name(self, value: object) -> str | None:
        """The name under which a tensor is scored; None for anything else."""
        return self._names.get(id(value))

    def use(self, name: str) -> None:
        """Note in the forward pass that a gradient of this parameter will come from one more place."""
        self._uses[name] += 1

    @property
    def shared(self) -> list[str]:
        """The parameters that this chunk uses in more than one place."""
        return sorted(name for name, uses in self._uses.items() if uses > 1)

    def clear(self) -> None:
        """Forget everything."""
        self._uses.clear()
        self._parts.clear()
        for tensor in self.total.values():
            tensor.zero_()

    def settle(self) -> None:
        """End a chunk: add what was summed per sample, and begin to count uses again."""
        for name in list(self._parts):
            for gradient in self._parts.pop(name):
                self._raise(self.total[name], gradient, own=True)
        self._uses.clear()

    def add_alone(self, name: str, gradient: Tensor) -> None:
        """Take the whole gradient of one sample for a parameter, from a backward pass of its own."""
        self._raise(self.total[name], gradient)

    def add(self, name: str, gradients: Tensor, rows: slice = _ALL) -> None:
        """Take the gradients of all the chunk's samples for a parameter, or for some of its rows.

        Args:
            name: The parameter.
            gradients: Shape ``[B, *shape]``, for B samples.
            rows: Which rows of the parameter; each use gives disjoint rows.
        """
        if self._uses[name] > 1:
            self._whole(name, len(gradients))[:, rows].add_(gradients)
            return
        target = self.total[name][rows] if rows != _ALL else self.total[name]
        if target.numel() <= _SMALL:
            target.add_(self._powers(gradients.float()).sum(0))
        else:
            for gradient in gradients:
                self._raise(target, gradient)

    def add_products(
        self,
        name: str,
        samples: int,
        length: int,
        shape: tuple[int, int, int],
        operands: Operands,
        rows: slice = _ALL,
    ) -> None:
        """Take the gradients of all samples as products of a layer's output gradients and inputs, Gⱼ = Lⱼᵀ Rⱼ.

        Args:
            name: The parameter.
            samples: B, how many samples the chunk has.
            length: T, over how many rows (tokens, positions) the product sums.
            shape: ``(groups, out, in)``, as which the parameter's rows can be viewed.
            operands: Gives L ``[s, groups, T, out]`` and R ``[s, groups, T, in]`` for a slice of s
                samples.
            rows: Which rows of the parameter.
        """
        if self._uses[name] > 1:
            whole = self._whole(name, samples)
            for part in _slices(samples, 1):
                left, right = operands(part)
                whole[part, rows].view(-1, *shape).add_(left.mT @ right)
            return
        target = (self.total[name][rows] if rows != _ALL else self.total[name]).view(shape)
        if length == 1:
            # |l rᵀ|ᵖ = |l|ᵖ (|r|ᵖ)ᵀ, so that the sum over samples is itself one product.
            left, right = (self._powers(t.squeeze(2).float()) for t in operands(_ALL))
            target.baddbmm_(left.permute(1, 2, 0), right.transpose(0, 1))
            return
        entries = max(target.numel(), length * (shape[1] + shape[2]) * shape[0])
        for part in _slices(samples, samples_together(target.device, entries)):
            left, right = operands(part)
            gradients = self._products(left.flatten(0, 1), right.flatten(0, 1)).view(-1, *shape)
            if len(gradients) == 1:
                self._raise(target, gradients[0], own=True)
            else:
                norms = torch.linalg.vector_norm(gradients, self.power, dim=0, dtype=torch.float32)
                target.add_(norms if self.power == 1 else norms.square_())

    def _powers(self, gradients: Tensor) -> Tensor:
        return gradients.abs() if self.power == 1 else gradients.square()

    def _raise(self, target: Tensor, gradient: Tensor, *, own: bool = False) -> None:
        """Add the power of one gradient; one that is not ``own`` may share its memory with another and is left as it is."""
        if self.power == 2:
            # A square of few bits would lose half of them.
            wide = gradient.float()
            target.addcmul_(wide, wide)
        else:
            target.add_(gradient.abs_() if own else gradient.abs())

    def _products(self, left: Tensor, right: Tensor) -> Tensor:
        """Lᵀ R of each pair, in memory that every layer uses again: fresh pages cost as much as the product's addition."""
        pairs, _, out = left.shape
        entries = pairs * out * right.shape[2]
        if self._work is None or self._work.numel() < entries or self._work.dtype != left.dtype:
            self._work = left.new_empty(entries)
        result = self._work[:entries].view(pairs, out, -1)
        if pairs == 1:
            torch.mm(left[0].T, right[0], out=result[0])
        else:
            torch.bmm(left.mT, right, out=result)
        return result

    def _whole(self, name: str, samples: int) -> Tensor:
        if name not in self._parts:
            self._parts[name] = self.total[name].new_zeros((samples, *self.total[name].shape))
        return self._parts[name]


def samples_together(device: torch.device, entries: int) -> int:
    """How many samples share one kernel.

    Args:
        device: A processor's cores are busy with one sample, whose gradient then is still in its
            cache when it is added.
        entries: Of one sample's gradient or operands, whichever has more.
    """
    return 1 if device.type == "cpu" else max(1, _WORK_ENTRIES // max(1, entries))


def _slices(count: int, most: int) -> list[slice]:
    """Split ``count`` samples into as few slices of at most ``most`` as there can be, all of about one size."""
    parts = -(-count // most)
    size = -(-count // parts)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
