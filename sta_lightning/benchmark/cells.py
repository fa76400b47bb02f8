"""A part of a benchmark that one process computes, and what it adds to the results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sta_lightning.benchmark.results import CurvePoint, ForgettingResult, FusionResult, TradeOffPoint


@dataclass(frozen=True)
class Cell:
    """A part of a benchmark that one process computes.

    Attributes:
        kind: which of :data:`KINDS`.
        seed: the seed.
        names: what it is about: the key of a method, tasks.
        needs: identities of the cells that must be done before.
        images: forward passes of one image that it takes; what the time is expected from.
    """

    kind: str
    seed: int
    names: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    images: float = 0.0

    @property
    def id(self) -> str:
        """Names it, and no other cell."""
        return "/".join([f"seed_{self.seed}", self.kind, *self.names])


@dataclass(frozen=True)
class Found:
    """What a cell adds to the results.

    Attributes:
        fusion: rows of the fusion table.
        pairs: pairs of tasks.
        forgetting: rows of the forgetting table.
        curves: points of curves.
        trade_off: points of the trade-off, of one task each.
        extra: whatever else, by name.
        seconds: how long its steps took when they were done.
    """

    fusion: tuple[FusionResult, ...] = ()
    pairs: tuple[FusionResult, ...] = ()
    forgetting: tuple[ForgettingResult, ...] = ()
    curves: tuple[CurvePoint, ...] = ()
    trade_off: tuple[tuple[str, TradeOffPoint], ...] = ()
    extra: tuple[tuple[str, Any], ...] = ()


def windows(tasks: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    """Subsets of so many neighbours, the list taken as a ring: as few as it takes for every task to be in equally many."""
    count = len(tasks)
    ring = [*tasks, *tasks]
    starts = [(size * number) % count for number in range(count // math.gcd(size, count))]
    chosen = [set(ring[start : start + size]) for start in starts]
    return [tuple(task for task in tasks if task in subset) for subset in chosen]
