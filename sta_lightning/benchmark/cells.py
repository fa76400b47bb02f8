"""A part of a benchmark that one process computes, and what it adds to the results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sta_lightning.benchmark.results import CurvePoint, ForgettingResult, FusionResult, Setting, TradeOffPoint


@dataclass(frozen=True)
class Cell:
    """A part of a benchmark that one process computes.

    Attributes:
        kind: which of :data:`~sta_lightning.benchmark.kinds.KINDS`.
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
    """What a cell adds to the results; the points of the trade-off are of one task each.

    Attributes:
        correct: (method, setting, seed) of a fused row -> task -> which test images were classified
            rightly, see :func:`~sta_lightning.benchmark.evaluation.unpack`.
        extra: whatever else, by name.
    """

    fusion: tuple[FusionResult, ...] = ()
    pairs: tuple[FusionResult, ...] = ()
    forgetting: tuple[ForgettingResult, ...] = ()
    curves: tuple[CurvePoint, ...] = ()
    trade_off: tuple[TradeOffPoint, ...] = ()
    correct: Mapping[tuple[str, Setting, int], Mapping[str, str]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def windows(tasks: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    """Subsets of neighbours on a ring: the fewest that have every task equally often."""
    count = len(tasks)
    ring = [*tasks, *tasks]
    starts = [(size * number) % count for number in range(count // math.gcd(size, count))]
    chosen = [set(ring[start : start + size]) for start in starts]
    return [tuple(task for task in tasks if task in subset) for subset in chosen]
