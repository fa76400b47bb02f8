"""Order statistics over a whole model by a guess: a sample says where one lies, a pass looks there.

As in Floyd and Rivest, "Expected Time Bounds for Selection", Communications of the ACM 1975. What
is found is exact; a guess that was wrong is found to be.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sta_lightning.arithmetic.entries import Entries
from sta_lightning.arithmetic.method import Survey
from sta_lightning.arithmetic.rows import NativeRows
from sta_lightning.arithmetic.workers import together
from sta_lightning.kernels import Loops

Values = npt.NDArray[Any]

_LEAST = 1 << 23  # entries of a model that are worth a sample; measured
_RUN, _EVERY = 128, 1 << 15  # so many entries in a row are sampled, of so many
_RUNS = 1 << 11  # at least
_ASIDE = 1 / 256  # how far to either side of the guess, as a share of the entries
_MOST = 1 << 24  # numbers between the bounds of all statistics together, as expected: 128 MB


@dataclass
class _Bracket:
    """The numbers of a row between two bounds, and how many lie outside.

    Attributes:
        low: the lower bound, or -inf.
        high: the upper one, or inf.
        room: how many numbers between are kept; with more the guess is given up.
        counts: how many numbers are below ``low``, equal to it, equal to ``high``, and not finite.
        kept: how many lie between.
        inside: these, as they were met.
    """

    low: float
    high: float
    room: int
    counts: Values = field(default_factory=lambda: np.zeros(4, np.int64))
    kept: int = 0
    inside: list[Values] = field(default_factory=list)

    def add(self, counts: Values, kept: int, inside: Values) -> None:
        """Take what some numbers come to."""
        self.counts += counts
        self.kept += kept
        self.inside.append(inside)
        if self.kept > self.room:
            self.inside.clear()

    def sums(self) -> tuple[Values, int, Values]:
        """What :meth:`add` takes of all numbers together."""
        return self.counts, self.kept, np.concatenate([np.empty(0), *self.inside])

    def kth(self, k: int) -> float | None:
        """The k-th smallest of the row; None if it is not here."""
        below, lowest, highest, _ = (int(count) for count in self.counts)
        left = k - below
        if left <= 0 or self.kept > self.room or left > lowest + self.kept + highest:
            return None
        if left <= lowest:
            return self.low
        if left > lowest + self.kept:
            return self.high
        values = np.concatenate(self.inside)
        values.partition(left - lowest - 1)
        return float(values[left - lowest - 1])


def bracketed(
    survey: Survey, ranks: Sequence[Sequence[int]], native: NativeRows
) -> dict[tuple[int, int], Tensor]:
    """Order statistics of rows over all weights: those of which the guess was right.

    It takes one pass over the models. What is kept of it is expected to be 1/128 of the entries for
    every row and rank; where that is more than 128 MB nothing is guessed.

    Args:
        survey: the models.
        ranks: for each row the ranks k wanted, from 1.
        native: makes the rows together, float64: they take long, and their digits four passes.

    Returns:
        (row, k) -> the k-th smallest, shape ``[]``, on the CPU. Empty for a small model, and where
        a tensor cannot be read by a compiled loop.

    Raises:
        StaError: if an entry is NaN or infinite.
    """
    entries = {name: survey.entries(name) for name in survey.problem.names}
    starts = dict(
        zip(entries, itertools.accumulate((e.numel for e in entries.values()), initial=0), strict=False)
    )
    size = sum(each.numel for each in entries.values())
    wanted = [(row, k) for row, its in enumerate(ranks) for k in dict.fromkeys(its)]
    every = min(_EVERY, size // _RUNS)
    expected = [size * (min(1, k / size + _ASIDE) - max(0, k / size - _ASIDE)) for _, k in wanted]
    able = all(each.loops is not None for each in entries.values())
    if size < _LEAST or sum(expected) > _MOST:
        return {}
    if not all(together(survey.processes, lambda: able)):
        return {}

    def sampled(entries: Entries) -> list[Values]:
        found: list[Values] = []
        begin = range(-starts[entries.name] % every, entries.numel, every)
        runs = [slice(at, min(at + _RUN, entries.numel)) for at in begin]
        native.look(entries, lambda loops, first, rows: found.append(rows.numpy().copy()), runs)
        return found

    runs = itertools.chain.from_iterable(survey.each(sampled).values())
    sample = np.sort(np.concatenate(list(runs), axis=1), axis=1)
    brackets = [
        _Bracket(*_around(sample[row], k / size), math.ceil(2 * most))
        for (row, k), most in zip(wanted, expected, strict=True)
    ]
    del runs, sample
    lock = threading.Lock()

    def look(entries: Entries) -> None:
        def see(loops: Loops, first: int, rows: Tensor) -> None:
            start, count = rows.data_ptr(), rows.shape[1]
            room = np.empty(count)
            out = room.ctypes.data
            for (row, _), bracket in zip(wanted, brackets, strict=True):
                kept, counts = loops.between(start + 8 * row * count, count, bracket.low, bracket.high, out)
                with lock:
                    bracket.add(np.array(counts), kept, room[:kept].copy())

        native.look(entries, see)
        if any(bracket.counts[3] for bracket in brackets):
            entries.refuse_infinite()

    survey.each(look)
    found = {}
    for key, bracket in zip(wanted, brackets, strict=True):
        whole = _Bracket(bracket.low, bracket.high, bracket.room)
        for part in together(survey.processes, bracket.sums):
            whole.add(*part)
        value = whole.kth(key[1])
        if value is not None:
            found[key] = torch.tensor(value, dtype=torch.float64, device="cpu")
    return found


def _around(sample: Values, share: float) -> tuple[float, float]:
    """Bounds of the number below which a share of all lies, from some of them, sorted."""
    low = math.floor((share - _ASIDE) * len(sample)) - 1
    high = math.ceil((share + _ASIDE) * len(sample))
    return (
        float(sample[low]) if low >= 0 else -math.inf,
        float(sample[high]) if high < len(sample) else math.inf,
    )
