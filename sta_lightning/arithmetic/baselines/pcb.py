"""PCB-Merging: entries compete within a task and across the tasks, and weigh as much as they win.

Du et al., "Parameter Competition Balancing for Model Merging", NeurIPS 2024.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Addresses, Block
from sta_lightning.arithmetic.method import Answer, Native, Survey, VectorMethod
from sta_lightning.arithmetic.normalization import Bounds
from sta_lightning.arithmetic.order import magnitude_statistics, order_statistics, size_of
from sta_lightning.arithmetic.rows import NativeRows
from sta_lightning.arithmetic.states import to_double
from sta_lightning.kernels import Loops, loops
from sta_lightning.ranges import finite, number, word

PcbVariant = Literal["vision", "general"]

# Share of the magnitudes that is clamped at either end.
_CLAMPED = {"vision": 0.01, "general": 0.0001}
_MOST = 1 << 15  # tasks that the compiled loop takes


@dataclass(frozen=True)
class Competition:
    """What PCB has to know of the whole models, for each task.

    Attributes:
        sizes: the bounds of the clamped magnitudes; they are clamped to these and normalised by
            them.
        balances: the bounds of the products of the two competitions, likewise.
    """

    sizes: Sequence[Bounds]
    balances: Sequence[Bounds]

    @cached_property
    def bounds(self) -> list[list[float]]:
        """What :meth:`sta_lightning.kernels.Loops.pcb` takes of it."""
        sizes, balances = self.sizes, self.balances
        ends = [
            [getattr(bounds, end) for bounds in of] for of in (sizes, balances) for end in ("low", "high")
        ]
        return [*ends, [_noise(bounds) for bounds in balances]]


@dataclass(frozen=True)
class Pcb(VectorMethod):
    """PCB-Merging: theta_0 + scale * the mean of the clamped task vectors, weighted by scores.

    Args:
        ratio: share of every task's entries whose score is not zero, the winners over all tensors
            together; in (0, 1].
        scale: the coefficient lambda; the authors' vision script uses 1.2.
        variant: ``"vision"`` as in the authors' script for CLIP, ``"general"`` as in their general
            one, whose ratio is 0.1: magnitudes are clamped at 0.01% in place of 1%, and the tasks
            compete with their entries in place of their normalised magnitudes.
        clamp: share of the magnitudes that is clamped at either end, in [0, 0.5); None for the
            variant's: 0.01 or 0.0001.
    """

    ratio: float = number(
        0.05,
        "(0, 1]",
        "PCB keeps a share of the entries: ratio",
        "The authors use 0.05 for vision and 0.1 elsewhere.",
    )
    scale: float = finite(1.2)
    variant: PcbVariant = word("vision", PcbVariant)
    clamp: float | None = number(
        None,
        "[0, 0.5)",
        "clamp, the share of the magnitudes that is clamped at either end,",
        "The authors use 0.01 for vision and 0.0001 elsewhere.",
    )

    title = "PCB-Merging"
    summary = "the mean of the task vectors, weighted by how large an entry is and how well others agree"
    coefficient = "scale"
    source = "Du et al. 2024"

    @override
    def prepare(self, survey: Survey) -> Competition:
        """The bounds of the clamped magnitudes, then of the products of the two competitions."""
        tasks, size = len(survey.problem.tasks), size_of(survey)
        if not size:
            none = [Bounds(0.0, 0.0)] * tasks
            return Competition(none, none)

        # Indices from 0 into the sorted entries, as the authors compute them; ranks count from 1.
        clamped = _CLAMPED[self.variant] if self.clamp is None else self.clamp
        low = int(size * clamped)
        high = max(low, int(size * (1 - clamped) - 1))
        sizes = _bounds(magnitude_statistics(survey, [[low + 1, high + 1]] * tasks))
        lost = min(int(size * (1 - self.ratio)), size - 1)

        def rows(block: Block) -> Iterator[Tensor]:
            return self._balances(block, sizes)

        def fill(loops: Loops, at: Addresses, size: int, out: int) -> None:
            ends = [bounds.low for bounds in sizes], [bounds.high for bounds in sizes]
            loops.balances(at.origin, at.finetuned, *ends, self.variant == "vision", out, size)

        native = NativeRows(torch.float64, fill)
        ranks = [[lost + 1, size]] * tasks
        return Competition(sizes, _bounds(order_statistics(survey, rows, ranks, torch.float64, native)))

    @override
    def native(self, tasks: int) -> Native | None:
        def call(kernel: Loops, at: Addresses, state: Competition, out: int, size: int) -> Answer:
            models, vision = (at.base, at.origin, at.finetuned), self.variant == "vision"
            return Answer(kernel.pcb(*models, state.bounds, vision, self.scale, out, size))

        return Native(loops, call, reads_origin=True) if tasks <= _MOST else None

    def _balances(self, block: Block, sizes: Sequence[Bounds]) -> Iterator[Tensor]:
        """For each task, the competition within it times that across the tasks, float64.

        Within the task e^(N (m^2 - 1)), m the normalised magnitude: e^N times less than the
        authors', which a normalisation takes out again, and which overflows from N = 710 on.
        """
        tasks = len(sizes)
        rivals, magnitudes = torch.zeros_like(to_double(block.base)), []
        for delta, bounds in zip(block.deltas(), sizes, strict=True):
            wide = to_double(delta)
            magnitudes.append(bounds.apply(wide.abs().clamp(bounds.low, bounds.high)))
            rivals += wide.sign() * magnitudes[-1] if self.variant == "vision" else wide
        for delta, magnitude in zip(block.deltas(), magnitudes, strict=True):
            yield _exp(tasks * (magnitude * magnitude - 1)) * _tanh(to_double(delta) * rivals)

    @override
    def vector(self, block: Block, state: Competition) -> Tensor:
        total = torch.zeros_like(to_double(block.base))
        weight = torch.zeros_like(total)
        balances = self._balances(block, state.sizes)
        for delta, balance, size, bounds in zip(
            block.deltas(), balances, state.sizes, state.balances, strict=True
        ):
            score = bounds.apply(_above(balance, bounds))
            wide = to_double(delta)
            total += wide.sign() * wide.abs().clamp(size.low, size.high) * score
            weight += score
        return (self.scale * total / weight.clamp(min=1e-12)).to(block.base)


# The exponential and the hyperbolic tangent of float64, to two units in the last place, by
# operations that a compiled loop rounds alike: those of a library differ between processors.
_LOG2_E, _LN_2, _LN_2_REST = (
    float.fromhex(text) for text in ("0x1.71547652b82fep0", "0x1.62e42feep-1", "0x1.a39ef35793c76p-33")
)
_SHIFT = 1.5 * 2**52  # the low bits of a sum with it are the integer nearest to the other one
_SMALLEST, _LARGEST = -708.0, 44.0  # e^x has 53 bits from the one on, and tanh is 1 from half the other on


def _exponential(x: Tensor) -> tuple[Tensor, Tensor]:
    """``power``, of two, and ``rest`` of e^x = power * (1 + rest), for abs(x) up to 708."""
    shifted = x * _LOG2_E + _SHIFT
    k = shifted - _SHIFT
    r = (x - k * _LN_2) - k * _LN_2_REST
    series = torch.full_like(r, 1 / math.factorial(13))
    for n in range(12, 1, -1):
        series.mul_(r).add_(1 / math.factorial(n))
    power = ((shifted.view(torch.int64) + 1023) << 52).view(torch.float64)
    return power, (r * r).mul_(series).add_(r)


def _exp(x: Tensor) -> Tensor:
    """e^x of numbers that are at most 0; e^-708 of smaller ones."""
    power, rest = _exponential(x.clamp(min=_SMALLEST))
    return power * rest + power


def _tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    power, rest = _exponential((2 * x.abs()).clamp(max=_LARGEST))
    less = power * rest + (power - 1)
    return torch.copysign(less / (less + 2), x)


# Products that are equal but for the order in which they were rounded differ by some 1e-16 of the
# largest.
_ROUNDED = 1e-12


def _above(balance: Tensor, bounds: Bounds) -> Tensor:
    """The products clamped to their bounds; within a rounding error of the lower one they are it.

    The weights are normalised and divided by their sum, or by 1e-12: without this a rounding error
    would decide where a task contributes, and by how much.
    """
    above = balance - bounds.low > _noise(bounds)
    return torch.where(above, balance.clamp(bounds.low, bounds.high), bounds.low)


def _noise(bounds: Bounds) -> float:
    return _ROUNDED * max(abs(bounds.low), abs(bounds.high))


def _bounds(found: Sequence[Sequence[Tensor]]) -> list[Bounds]:
    return [Bounds(float(low), float(high)) for low, high in found]
