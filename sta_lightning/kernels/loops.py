"""The compiled loops as Python functions over addresses of float32 entries."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

from sta_lightning.kernels.build import is_built, library, text
from sta_lightning.kernels.fused import SPAN_LIMIT, fused_source

OK, SUSPECT, GONE = 0, 1, 2
"""What a loop answers: done; done, but some entry is NaN or infinite; a mapped file shrank under it."""

# The text of the fusion grows with the number of tasks, and the compiler's time faster: 0.3 s for 6
# tasks, 7 s for 32.
MOST_TASKS = 32
_TOLERANCE, _FLOOR = 1e-6, 1e-36

_pointers: dict[int, Any] = {n: ctypes.c_void_p * n for n in range(1, MOST_TASKS + 1)}


class Loops:
    """The loops that do not depend on the number of tasks. Every argument that is an ``int`` address points to float32."""

    def __init__(self, found: ctypes.CDLL) -> None:
        self._library = found

    def linear(self, base: int, finetuned: Sequence[int], scale: float, out: int, size: int) -> int:
        """``out = base + scale * sum(finetuned - base)``."""
        return int(
            self._library.sta_linear(
                ctypes.c_void_p(base),
                _array(finetuned),
                ctypes.c_int(len(finetuned)),
                ctypes.c_float(scale),
                ctypes.c_void_p(out),
                ctypes.c_int64(size),
            )
        )

    def negate(self, model: int, origin: int, finetuned: int, scale: float, out: int, size: int) -> int:
        """``out = model - scale * (finetuned - origin)``."""
        return int(
            self._library.sta_negate(
                ctypes.c_void_p(model),
                ctypes.c_void_p(origin),
                ctypes.c_void_p(finetuned),
                ctypes.c_float(scale),
                ctypes.c_void_p(out),
                ctypes.c_int64(size),
            )
        )

    def subtract(
        self, model: int, origin: int, finetuned: int, score: int, threshold: float, out: int, size: int
    ) -> tuple[int, int]:
        """``out = model - (score > threshold ? finetuned - origin : 0)``; answers and says how many entries were kept."""
        kept = ctypes.c_int64(0)
        status = self._library.sta_subtract(
            ctypes.c_void_p(model),
            ctypes.c_void_p(origin),
            ctypes.c_void_p(finetuned),
            ctypes.c_void_p(score),
            ctypes.c_float(threshold),
            ctypes.c_void_p(out),
            ctypes.c_int64(size),
            ctypes.byref(kept),
        )
        return int(status), kept.value

    def bounds(self, values: int, size: int) -> tuple[int, float, float]:
        """Answers, and the smallest and the largest entry."""
        low, high = ctypes.c_float(float("inf")), ctypes.c_float(float("-inf"))
        status = self._library.sta_bounds(
            ctypes.c_void_p(values), ctypes.c_int64(size), ctypes.byref(low), ctypes.byref(high)
        )
        return int(status), low.value, high.value

    def count(self, values: int, size: int, shift: int, prefix: int, counts: int) -> int:
        """Count 16-bit digits of the ordered bits into 65 536 int64 at ``counts``."""
        return int(
            self._library.sta_count(
                ctypes.c_void_p(values),
                ctypes.c_int64(size),
                ctypes.c_int(shift),
                ctypes.c_int(prefix),
                ctypes.c_void_p(counts),
            )
        )

    def copy(self, source: int, target: int, size: int) -> int:
        """Copy ``size`` bytes."""
        return int(
            self._library.sta_copy(ctypes.c_void_p(source), ctypes.c_void_p(target), ctypes.c_int64(size))
        )


class Fused:
    """Fusion through masks in one pass, for one number of tasks and one rank."""

    def __init__(self, found: ctypes.CDLL, tasks: int) -> None:
        self._library = found
        self._tasks = tasks

    def __call__(
        self,
        base: int,
        finetuned: Sequence[int],
        scores: Sequence[int],
        limits: Sequence[tuple[float, float] | None],
        out: int,
        size: int,
    ) -> tuple[int, list[int]]:
        """Fuse one piece.

        Args:
            base: address of the pretrained entries.
            finetuned: addresses of the tasks' entries.
            scores: addresses of their importances.
            limits: minimum and maximum that each task's importances are normalised by (Eq. 13);
                nothing for importances that are compared as they are.
            out: address for the result.
            size: number of entries.

        Returns:
            What the loop answers, and how many entries of each task were kept.
        """
        doubles, floats = ctypes.c_double * self._tasks, ctypes.c_float * self._tasks
        kept = (ctypes.c_int64 * self._tasks)()
        lows, spans, factors, quick = [], [], [], True
        plain = all(limit is None for limit in limits)
        for limit in limits:
            low, high = limit or (0.0, 1.0)
            span = high - low
            if math.isinf(span):  # a group's float64 bounds; the eager form halves them
                return SUSPECT, [0] * self._tasks
            lows.append(low)
            spans.append(span or math.inf)  # minimum = maximum: every entry goes to 0
            factors.append(1.0 if limit is None else SPAN_LIMIT / span if span else 0.0)
            # The quick form works in float32, of which the bounds of a float64 group need not be.
            quick &= ctypes.c_float(low).value == low
            quick &= limit is None or span == 0 or 1 / SPAN_LIMIT <= span <= SPAN_LIMIT
        status = self._library.sta_fuse(
            ctypes.c_void_p(base),
            _array(finetuned),
            _array(scores),
            doubles(*lows),
            doubles(*spans),
            floats(*factors),
            ctypes.c_float(0.0 if plain else _TOLERANCE),
            ctypes.c_float(0.0 if plain else _FLOOR),
            ctypes.c_int(not (quick and (plain or None not in limits))),
            ctypes.c_void_p(out),
            ctypes.c_int64(size),
            kept,
        )
        return int(status), list(kept)


def loops() -> Loops | None:
    """The loops that do not depend on the number of tasks, or nothing where they cannot be compiled."""
    found = library(text("loops"))
    return None if found is None else Loops(found)


def loops_are_built() -> bool:
    """Whether :func:`loops` answers without compiling."""
    return is_built(text("loops"))


def fused(n: int, k: int) -> Fused | None:
    """Fusion through masks for n tasks and rank k, or nothing where it cannot be compiled.

    Args:
        n: number of tasks.
        k: rank of the threshold, 1..n.
    """
    if not 2 <= n <= MOST_TASKS:
        return None
    found = library(fused_source(n, k))
    return None if found is None else Fused(found, n)


def fused_is_built(n: int, k: int) -> bool:
    """Whether :func:`fused` answers without compiling."""
    return 2 <= n <= MOST_TASKS and is_built(fused_source(n, k)) and loops_are_built()


def _array(addresses: Sequence[int]) -> Any:
    kind = _pointers.get(len(addresses))
    if kind is None:
        kind = _pointers[len(addresses)] = ctypes.c_void_p * len(addresses)
    return kind(*addresses)
