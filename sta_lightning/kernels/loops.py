"""The compiled loops as Python functions over addresses of float32 entries."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sta_lightning.kernels.build import library
from sta_lightning.kernels.fused import SPAN_LIMIT, fused_source
from sta_lightning.kernels.network import selection_network

_LOOPS = Path(__file__).with_name("loops.c").read_text(encoding="utf-8")
# The text of the fusion grows with the number of tasks, and the compiler's time faster: 0.3 s for 6
# tasks, 7 s for 32. More tasks, up to what it has room for, share a loop that is told the network.
MOST_TASKS, _MOST_SHARED = 32, 1 << 12
_TOLERANCE, _FLOOR = 1e-6, 1e-36

_ADDRESS, _COUNT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_FLOAT, _DOUBLE = ctypes.c_float, ctypes.c_double


class Loops:
    """The loops for any number of tasks.

    Every argument that is an address (an ``int``) points to ``size`` float32 entries. ``out`` is
    written. The answer ``finite`` is whether all entries read, and all results, are finite.
    """

    def __init__(self, found: ctypes.CDLL) -> None:
        self._library = found
        found.sta_read.argtypes = (_ADDRESS, _INT, _COUNT)
        found.sta_linear.argtypes = (*[_ADDRESS] * 3, _INT, _FLOAT, _ADDRESS, _COUNT)
        found.sta_negate.argtypes = (_ADDRESS, _ADDRESS, _ADDRESS, _FLOAT, _ADDRESS, _COUNT)
        found.sta_subtract.argtypes = (*[_ADDRESS] * 4, _FLOAT, _ADDRESS, _COUNT, _ADDRESS)
        found.sta_bounds.argtypes = (_ADDRESS, _COUNT, _ADDRESS, _ADDRESS)
        found.sta_count.argtypes = (_ADDRESS, _COUNT, _INT, ctypes.c_int32, _ADDRESS)
        found.sta_count_wide.argtypes = (_ADDRESS, _COUNT, _INT, _COUNT, _ADDRESS)
        found.sta_between.argtypes = (_ADDRESS, _COUNT, _DOUBLE, _DOUBLE, _ADDRESS, _ADDRESS)
        found.sta_between.restype = _COUNT
        found.sta_magnitudes.argtypes = (_ADDRESS, _ADDRESS, _INT, _ADDRESS, _COUNT)
        found.sta_elect.argtypes = (_ADDRESS, _ADDRESS, _INT, _ADDRESS, _COUNT)
        found.sta_elect.restype = _COUNT
        found.sta_ties.argtypes = (*[_ADDRESS] * 3, _INT, _ADDRESS, _FLOAT, _INT, _FLOAT, _ADDRESS, _COUNT)
        found.sta_consensus.argtypes = (*[_ADDRESS] * 3, _INT, _ADDRESS, _INT, _DOUBLE, _ADDRESS, _COUNT)
        found.sta_balances.argtypes = (_ADDRESS, _ADDRESS, _INT, _ADDRESS, _ADDRESS, _INT, _ADDRESS, _COUNT)
        found.sta_thin.argtypes = (*[_ADDRESS] * 3, _COUNT, ctypes.c_uint32, _COUNT, _FLOAT, _FLOAT)
        found.sta_pcb.argtypes = (*[_ADDRESS] * 3, _INT, *[_ADDRESS] * 5, _INT, _DOUBLE, _ADDRESS, _COUNT)

    def read(self, reads: Sequence[tuple[int, int, int]], size: int) -> bool:
        """Fill memory with ``size`` bytes of every open file, in one call.

        ``reads`` are the file's number, the byte that it begins with and the address. Returns
        whether all were there; what is missing a read of the file's own tells.
        """
        words = (_COUNT * (3 * len(reads)))(*(word for read in reads for word in read))
        return not self._library.sta_read(words, len(reads), size)

    def linear(
        self, base: int, origin: int, finetuned: Sequence[int], scale: float, out: int, size: int
    ) -> bool:
        """``out = base + scale * sum(finetuned - origin)``; returns ``finite``."""
        tasks = len(finetuned)
        return not self._library.sta_linear(base, origin, _array(finetuned), tasks, scale, out, size)

    def negate(self, model: int, origin: int, finetuned: int, scale: float, out: int, size: int) -> bool:
        """``out = model - scale * (finetuned - origin)``; returns ``finite``."""
        return not self._library.sta_negate(model, origin, finetuned, scale, out, size)

    def subtract(
        self, model: int, origin: int, finetuned: int, score: int, threshold: float, out: int, size: int
    ) -> tuple[bool, int]:
        """``out = model - (score > threshold ? finetuned - origin : 0)``.

        Returns:
            ``finite``, and how many entries of the task vector were kept.
        """
        kept = ctypes.c_int64(0)
        bad = self._library.sta_subtract(
            model, origin, finetuned, score, threshold, out, size, ctypes.byref(kept)
        )
        return not bad, kept.value

    def bounds(self, values: int, size: int) -> tuple[float, float]:
        """Smallest and largest entry, (inf, -inf) of none; NaN if one of them is not finite."""
        low, high = ctypes.c_float(math.inf), ctypes.c_float(-math.inf)
        bad = self._library.sta_bounds(values, size, ctypes.byref(low), ctypes.byref(high))
        return (math.nan, math.nan) if bad else (low.value, high.value)

    def count(
        self, values: int, size: int, shift: int, prefix: int, counts: int, *, wide: bool = False
    ) -> None:
        """Count 16-bit digits of the ordered bits into 65 536 int64 at ``counts``.

        The entries are float64 if ``wide``.
        """
        count = self._library.sta_count_wide if wide else self._library.sta_count
        count(values, size, shift, prefix, counts)

    def between(self, values: int, size: int, low: float, high: float, out: int) -> tuple[int, list[int]]:
        """The float64 entries between two bounds, into ``out``, which has room for ``size``.

        Returns:
            How many these are; and how many are below ``low``, equal to it, equal to ``high``, and
            not finite.
        """
        counts = (_COUNT * 4)()
        return int(self._library.sta_between(values, size, low, high, out, counts)), list(counts)

    def magnitudes(self, origin: int, finetuned: Sequence[int], out: int, size: int) -> None:
        """``abs(finetuned - origin)`` of every task: float32 ``[tasks, size]`` at ``out``."""
        self._library.sta_magnitudes(origin, _array(finetuned), len(finetuned), out, size)

    def elect(self, origin: int, finetuned: Sequence[int], thresholds: Sequence[float], size: int) -> int:
        """Positions at which what TIES keeps adds up to more than 0, less those of less than 0."""
        floats = (_FLOAT * len(thresholds))(*thresholds)
        return int(self._library.sta_elect(origin, _array(finetuned), len(finetuned), floats, size))

    def ties(
        self,
        base: int,
        origin: int,
        finetuned: Sequence[int],
        thresholds: Sequence[float],
        majority: int,
        mean: bool,
        scale: float,
        out: int,
        size: int,
    ) -> bool:
        """``out = base +`` the vector of ``baselines.ties.Ties``.

        Returns ``finite``.
        """
        floats, tasks = (_FLOAT * len(thresholds))(*thresholds), len(finetuned)
        return not self._library.sta_ties(
            base, origin, _array(finetuned), tasks, floats, majority, mean, scale, out, size
        )

    def consensus(
        self,
        base: int,
        origin: int,
        finetuned: Sequence[int],
        tall: Sequence[float],
        agree: int,
        scale: float,
        out: int,
        size: int,
    ) -> bool:
        """``out = base +`` the vector of ``baselines.consensus.Consensus``.

        Returns ``finite``.
        """
        tasks = len(finetuned)
        return not self._library.sta_consensus(
            base, origin, _array(finetuned), tasks, _doubles(tall), agree, scale, out, size
        )

    def balances(
        self,
        origin: int,
        finetuned: Sequence[int],
        lows: Sequence[float],
        highs: Sequence[float],
        vision: bool,
        out: int,
        size: int,
    ) -> None:
        """What ``baselines.pcb.Pcb`` ranks: float64 ``[tasks, size]`` at ``out``."""
        bounds = _doubles(lows), _doubles(highs)
        self._library.sta_balances(origin, _array(finetuned), len(finetuned), *bounds, vision, out, size)

    def pcb(
        self,
        base: int,
        origin: int,
        finetuned: Sequence[int],
        bounds: Sequence[Sequence[float]],
        vision: bool,
        scale: float,
        out: int,
        size: int,
    ) -> bool:
        """``out = base +`` the vector of ``baselines.pcb.Pcb``; at most 32768 tasks.

        ``bounds`` are of every task the lowest and highest magnitude, the lowest and highest
        balance, and what counts as rounding of the latter. Returns ``finite``.
        """
        tasks, given = len(finetuned), [_doubles(values) for values in bounds]
        return not self._library.sta_pcb(
            base, origin, _array(finetuned), tasks, *given, vision, scale, out, size
        )

    def thin(
        self,
        origin: int,
        finetuned: int,
        out: int,
        size: int,
        seed: int,
        skip: int,
        rate: float,
        divisor: float,
    ) -> None:
        """``out = (finetuned - origin) / divisor`` where a number drawn is at least ``rate``; or 0.

        The numbers are those of ``torch.rand`` on the CPU from a generator of this seed, of which
        the first ``skip`` are left out. Entries that are not finite are kept.
        """
        self._library.sta_thin(origin, finetuned, out, size, seed & 0xFFFFFFFF, skip, rate, divisor)


Bounds = Sequence[tuple[float, float] | None]
"""Minimum and maximum that each task's importances are normalised by (Eq. 13); ``None`` for those
that are compared as they are."""
_Scaling = Callable[[Bounds, Sequence[float], Sequence[float]], tuple[Any, ...]]


class Fused:
    """Fusion through masks in one pass, for one number of tasks and one rank.

    Args:
        fuse: The compiled loop.
        scaling: Makes its arguments between models and result of the bounds, of the minima, and of
            maximum less minimum.
    """

    def __init__(self, fuse: Any, scaling: _Scaling) -> None:
        self._fuse, self._scaling = fuse, scaling

    def __call__(
        self, base: int, finetuned: Sequence[int], scores: Sequence[int], bounds: Bounds, out: int, size: int
    ) -> tuple[bool, list[int]]:
        """Fuse one piece; addresses and ``size`` as in :class:`Loops`.

        Returns:
            Whether all entries read, and all results, are finite and the loop could take them; and
            how many entries of each task were kept.
        """
        kept = (_COUNT * len(bounds))()
        lows, highs = zip(*(pair or (0.0, 1.0) for pair in bounds), strict=True)
        spans = [high - low for low, high in zip(lows, highs, strict=True)]
        if math.inf in spans:  # a group's float64 bounds; the eager form halves them
            return False, list(kept)
        scaling = self._scaling(bounds, lows, spans)
        bad = self._fuse(base, _array(finetuned), _array(scores), *scaling, out, size, kept)
        return not bad, list(kept)


def _fused_few(found: ctypes.CDLL) -> Fused:
    """By a loop that was made for this number and rank."""

    def scaling(bounds: Bounds, lows: Sequence[float], spans: Sequence[float]) -> tuple[Any, ...]:
        plain = all(pair is None for pair in bounds)
        # The quick form works in float32, of which the bounds of a float64 group need not be.
        quick = (plain or None not in bounds) and all(
            _FLOAT(low).value == low and (span == 0 or 1 / SPAN_LIMIT <= span <= SPAN_LIMIT)
            for low, span in zip(lows, spans, strict=True)
        )
        factors = [1.0 if plain else SPAN_LIMIT / span if span else 0.0 for span in spans]
        limits = (0.0, 0.0) if plain else (_TOLERANCE, _FLOOR)
        return _doubles(lows), _divisors(spans), (_FLOAT * len(factors))(*factors), *limits, not quick

    found.sta_fuse.argtypes = (*[_ADDRESS] * 6, _FLOAT, _FLOAT, _INT, _ADDRESS, _COUNT, _ADDRESS)
    return Fused(found.sta_fuse, scaling)


def _fused_many(found: ctypes.CDLL, tasks: int, rank: int) -> Fused:
    """By the loop that all larger numbers of tasks share, in its precise form."""
    steps = selection_network(tasks, rank)
    words = (ctypes.c_int32 * (4 * len(steps)))(*(word for step in steps for word in step))
    found.sta_fuse_many.argtypes = (*[_ADDRESS] * 3, _INT, _ADDRESS, _ADDRESS, _INT, _ADDRESS)
    found.sta_fuse_many.argtypes += (_COUNT, _ADDRESS, _COUNT, _ADDRESS)
    return Fused(
        found.sta_fuse_many,
        lambda bounds, lows, spans: (tasks, _doubles(lows), _divisors(spans), rank, words, len(steps)),
    )


def loops(*, work: float = math.inf) -> Loops | None:
    """The loops for any number of tasks; ``None`` where :func:`library` has none."""
    found = library(_LOOPS, work=work)
    return None if found is None else Loops(found)


def fused(n: int, k: int, *, work: float = math.inf) -> Fused | None:
    """Fusion through masks for n tasks and rank k, 1..n; ``None`` as in :func:`loops`."""
    if not 2 <= n <= _MOST_SHARED:
        return None
    if n > MOST_TASKS:
        shared = library(_LOOPS, work=work)
        return None if shared is None else _fused_many(shared, n, k)
    found = library(fused_source(n, k), work=work)
    return None if found is None else _fused_few(found)


def _array(addresses: Sequence[int]) -> Any:
    return (_ADDRESS * len(addresses))(*addresses)


def _divisors(spans: Sequence[float]) -> Any:
    return _doubles([span or math.inf for span in spans])  # minimum = maximum: every entry goes to 0


def _doubles(values: Sequence[float]) -> Any:
    return (_DOUBLE * len(values))(*values)
