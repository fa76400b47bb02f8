"""DARE: drop entries of the task vectors at random and rescale the others, in front of any method.

Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free
Lunch", ICML 2024.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.masks import tensor_generator
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.sources import Derived, TensorSource
from sta_lightning.kernels import Loops, loops
from sta_lightning.ranges import check_ranges, number

# The mask of so many entries comes from one source of random numbers, so that any piece of a tensor
# can be made by itself.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Dare:
    """What is dropped.

    Args:
        rate: share of the entries dropped, in [0, 1).
        rescale: whether the others are divided by 1 - ``rate``, which keeps the expected task
            vector.
        seed: the entries dropped are a function of this number, the task and the tensor's name.

    Raises:
        StaError: if ``rate`` is out of range.
    """

    rate: float = number(0.5, "[0, 1)", "DARE's drop rate")
    rescale: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self)

    def drops(self, problem: Problem) -> Problem:
        """The same merge with task vectors of which entries are dropped."""
        return problem.of_vectors(
            lambda task, name, finetuned, origin: _Thinned(finetuned, origin, self, f"{task}:{name}")
        )

    def mask(self, label: str, piece: slice) -> Tensor:
        """Which entries of the flattened tensor ``"task:name"`` are kept: bool, on the CPU.

        Whatever the pieces, they are parts of the one mask of the tensor.
        """
        # Type and device are said, so that no default of the program's changes the mask.
        parts = [torch.zeros(0, dtype=torch.bool, device="cpu")]
        first = piece.start // _CHUNK
        for chunk in range(first, -(-piece.stop // _CHUNK)):
            generator = tensor_generator(self.seed, f"{label}:{chunk}")
            needed = min(_CHUNK, piece.stop - chunk * _CHUNK)
            drawn = torch.rand(needed, generator=generator, dtype=torch.float32, device="cpu")
            parts.append(drawn >= self.rate)
        offset = first * _CHUNK
        return torch.cat(parts)[piece.start - offset : piece.stop - offset]

    def thin(
        self, loops: Loops, label: str, piece: slice, origin: Tensor, finetuned: Tensor, out: Tensor
    ) -> None:
        """A piece of a task vector through :meth:`mask`, float32, in machine code."""
        divisor = 1 - self.rate if self.rescale else 1.0
        at = piece.start
        while at < piece.stop:
            chunk, skip = divmod(at, _CHUNK)
            count = min(piece.stop, (chunk + 1) * _CHUNK) - at
            base, tuned, made = (4 * (at - piece.start) + v.data_ptr() for v in (origin, finetuned, out))
            seed = tensor_generator(self.seed, f"{label}:{chunk}").initial_seed()
            loops.thin(base, tuned, made, count, seed, skip, self.rate, divisor)
            at += count


class _Thinned(Derived):
    """A task vector of which entries are dropped; parts: fine-tuned, origin."""

    def __init__(self, finetuned: TensorSource, origin: TensorSource, dare: Dare, label: str) -> None:
        super().__init__(finetuned, origin)
        self._dare, self._label = dare, label

    @override
    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        finetuned, origin = (part.read(piece, self.dtype) for part in self.parts)
        delta = finetuned - origin.to(finetuned.device)
        if self._dare.rescale:
            delta = delta / (1 - self._dare.rate)
        mask = self._dare.mask(self._label, piece).to(delta.device)
        # NaN and infinities are not dropped: they are refused by whoever reads this.
        return torch.where(mask | ~delta.isfinite(), delta, 0.0).to(dtype)

    @override
    def read_float32(self, piece: slice, buffer: Tensor) -> Tensor:
        native = loops(work=0)
        on_cpu = all(part.device.type == "cpu" for part in self.parts)
        if native is None or self.dtype != torch.float32 or not on_cpu or not _draws_alike():
            return super().read_float32(piece, buffer)
        finetuned, origin = (
            part.read_float32(piece, torch.empty(len(buffer), dtype=torch.float32, device="cpu"))
            for part in self.parts
        )
        self._dare.thin(native, self._label, piece, origin, finetuned, buffer)
        return buffer


@functools.cache
def _draws_alike() -> bool:
    """Whether the loop draws what this PyTorch does, which promises it of no later version."""
    native, piece = loops(work=0), slice(7, 2000)
    assert native is not None
    ones, dare = torch.ones(piece.stop - piece.start, dtype=torch.float32, device="cpu"), Dare(0.3, False)
    drawn = torch.empty_like(ones)
    dare.thin(native, "", piece, torch.zeros_like(ones), ones, drawn)
    return torch.equal(drawn == 1, dare.mask("", piece))
