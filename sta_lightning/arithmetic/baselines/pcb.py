"""PCB-Merging: entries compete within a task and across the tasks, and weigh as much as they win.

Du et al., "Parameter Competition Balancing for Model Merging", NeurIPS 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.method import Survey, VectorMethod
from sta_lightning.arithmetic.normalization import Bounds
from sta_lightning.arithmetic.order import magnitude_statistics, order_statistics, size_of
from sta_lightning.arithmetic.problem import Block
from sta_lightning.arithmetic.states import to_double
from sta_lightning.errors import StaError, listed
from sta_lightning.ranges import finite, number

PcbVariant = Literal["vision", "general"]

# Share of the magnitudes that is clamped at either end.
_CLAMPED = {"vision": 0.01, "general": 0.0001}


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
    variant: PcbVariant = "vision"
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in get_args(PcbVariant):
            raise StaError(
                f"PCB has no variant {self.variant!r}. Choose one of {listed(get_args(PcbVariant))}."
            )

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
        balances = _bounds(
            order_statistics(
                survey, lambda block: self._balances(block, sizes), [[lost + 1, size]] * tasks, torch.float64
            )
        )
        return Competition(sizes, balances)

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
            within = (tasks * (magnitude.square() - 1)).exp()
            yield within * (to_double(delta) * rivals).tanh()

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


# Products that are equal but for the order in which they were rounded differ by some 1e-16 of the
# largest.
_ROUNDED = 1e-12


def _above(balance: Tensor, bounds: Bounds) -> Tensor:
    """The products clamped to their bounds; within a rounding error of the lower one they are it.

    The weights are normalised and divided by their sum, or by 1e-12: without this a rounding error
    would decide where a task contributes, and by how much.
    """
    noise = _ROUNDED * max(abs(bounds.low), abs(bounds.high))
    return torch.where(balance - bounds.low > noise, balance.clamp(bounds.low, bounds.high), bounds.low)


def _bounds(found: Sequence[Sequence[Tensor]]) -> list[Bounds]:
    return [Bounds(float(low), float(high)) for low, high in found]
