"""Order statistics over a tensor or a whole model, exactly.

No vector of all entries is made: its digits are counted a piece at a time, and a pass over the
models settles 16 bits of every statistic. Where these passes are dear one pass looks where a sample
says that a statistic lies, and digits are counted if it was wrong.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sta_lightning.arithmetic.brackets import bracketed
from sta_lightning.arithmetic.entries import Addresses, Block, Entries
from sta_lightning.arithmetic.method import Survey
from sta_lightning.arithmetic.rows import NativeRows
from sta_lightning.arithmetic.selection import (
    SMALL,
    Counts,
    all_finite,
    count_digits,
    kth_from_counts,
    kth_smallest_entry,
)
from sta_lightning.arithmetic.states import is_finite, wide_dtype
from sta_lightning.arithmetic.workers import together
from sta_lightning.kernels import Loops

Rows = Callable[[Block], Iterable[Tensor]]
"""The entries of a block -> a row of as many numbers, without NaN, for every list of ranks."""

BINS = 1 << 16  # values of a digit


def kth_entry(entries: Entries, k: int) -> Tensor:
    """The k-th smallest importance, shape ``[]``, of a tensor with one task's; k from 1.

    Raises:
        StaError: if an entry of the tensor is NaN, which has no rank, or infinite.
    """
    (source,) = entries.scores
    dtype = wide_dtype(source.dtype)
    if entries.numel <= SMALL:
        values = source.read(slice(0, entries.numel), dtype)
        if not is_finite(values):
            entries.refuse_infinite()
        return kth_smallest_entry(values, k)

    def count(shift: int, prefix: int) -> Counts:
        each: defaultdict[int, Counts] = defaultdict(lambda: np.zeros(BINS, dtype=np.int64))

        def look(values: Tensor, native: Loops | None) -> None:
            counts = each[threading.get_ident()]  # as large as a piece: one for each thread
            if native is None:
                counts += count_digits(values, shift, prefix)
            else:
                native.count(values.data_ptr(), values.numel(), shift, prefix, counts.ctypes.data)

        entries.over(source, look)
        counts = cast(Counts, sum(each.values()))
        if shift == 8 * dtype.itemsize - 16 and not all_finite(counts, dtype):
            entries.refuse_infinite()
        return counts

    return kth_from_counts(count, k, dtype)


def size_of(survey: Survey) -> int:
    """How many entries all floating-point tensors of one model have together."""
    return sum(survey.entries(name).numel for name in survey.problem.names)


def work_dtype(survey: Survey) -> torch.dtype:
    """The type that holds every tensor's entries: float64 if one of them is so, else float32."""
    return wide_dtype(*(survey.entries(name).work for name in survey.problem.names))


def order_statistics(
    survey: Survey,
    rows: Rows,
    ranks: Sequence[Sequence[int]],
    dtype: torch.dtype | None = None,
    native: NativeRows | None = None,
) -> list[list[Tensor]]:
    """The k-th smallest of each row over all floating-point tensors, several k and rows at once.

    Exact, however many entries tie. It takes two passes over the models in float32 and four in
    float64, or one where :func:`~sta_lightning.arithmetic.brackets.bracketed` finds them, whatever
    the number of rows and ranks; the tensors are shared out among the processes. Besides a block,
    512 KiB are held for every row and rank, and less for those of earlier passes.

    Args:
        survey: the models; they have one entry at least.
        rows: what is ranked. It must give the same numbers whenever it is given the same block.
        ranks: for each row its ranks k, 1..:func:`size_of`.
        dtype: float32 or float64, to which no number of a row is rounded; None for
            :func:`work_dtype`.
        native: the same rows to the bit, for tensors that can be read as float32.

    Returns:
        For each row and each of its ranks a tensor of shape ``[]`` on the CPU.
    """
    kind = dtype or work_dtype(survey)
    known: dict[_Digit, _Occupied] = {}
    worth = native is not None and native.dtype == kind == torch.float64
    guessed = bracketed(survey, ranks, native) if native is not None and worth else {}

    def count(row: int, shift: int, prefix: int) -> Counts:
        # An unknown digit stops one selection, so that the others say what they need.
        values, occurring = known[row, shift, prefix]
        counts = np.zeros(BINS, dtype=np.int64)
        counts[values] = occurring
        return counts

    while True:
        wanted: dict[_Digit, None] = {}  # in the same order on every process
        found: list[list[Tensor]] = []
        for row, its in enumerate(ranks):
            found.append([])
            for k in its:
                try:
                    value = guessed.get((row, k))
                    found[-1].append(
                        kth_from_counts(partial(count, row), k, kind) if value is None else value
                    )
                except KeyError as unknown:
                    wanted[unknown.args[0]] = None
        if not wanted:
            return found
        for digit, counts in _count(survey, rows, list(wanted), kind, native):
            (values,) = counts.nonzero()
            known[digit] = values, counts[values]


_Digit = tuple[int, int, int]
"""Row, shift, prefix: see :func:`~sta_lightning.arithmetic.selection.count_digits`."""

_Occupied = tuple[npt.NDArray[np.int64], Counts]
"""The values of a digit that occur, mostly few, and how often."""


def magnitude_statistics(survey: Survey, ranks: Sequence[Sequence[int]]) -> list[list[Tensor]]:
    """:func:`order_statistics` of the magnitudes of each task vector's entries."""

    def fill(loops: Loops, at: Addresses, size: int, out: int) -> None:
        loops.magnitudes(at.origin, at.finetuned, out, size)

    def rows(block: Block) -> Iterator[Tensor]:
        return (delta.abs() for delta in block.deltas())

    return order_statistics(survey, rows, ranks, native=NativeRows(torch.float32, fill, apart=True))


def _count(
    survey: Survey,
    rows: Rows,
    wanted: list[_Digit],
    dtype: torch.dtype,
    native: NativeRows | None,
) -> Iterator[tuple[_Digit, Counts]]:
    """One pass: the counts of some digits."""
    mine: dict[_Digit, Counts] = {digit: np.zeros(BINS, dtype=np.int64) for digit in wanted}
    places = {digit: counts.ctypes.data for digit, counts in mine.items()}
    # The threads share the arrays, each a digit at a time: one for every thread would not be small.
    locks = {digit: threading.Lock() for digit in wanted}
    width, wide = dtype.itemsize, dtype == torch.float64
    highest = 8 * width - 16
    of = defaultdict(list)
    for digit in wanted:
        of[digit[0]].append(digit)

    def eager(block: Block) -> None:
        found = zip(*(list(rows(part)) for part in block.parts()), strict=True)
        for row, parts in enumerate(found):
            flat = torch.cat(parts).to(dtype)
            for digit in of[row]:
                if survey.workers.loops is None or flat.device.type != "cpu":
                    counts = count_digits(flat, *digit[1:])
                    with locks[digit]:
                        mine[digit] += counts
                else:
                    with locks[digit]:
                        survey.workers.loops.count(
                            flat.data_ptr(), flat.numel(), *digit[1:], places[digit], wide=wide
                        )

    def look(entries: Entries) -> None:
        if native is None or native.dtype != dtype or entries.loops is None:
            entries.look(eager)
            return

        def see(loops: Loops, first: int, made: Tensor) -> None:
            start, (many, size) = made.data_ptr(), made.shape
            for digit in itertools.chain.from_iterable(of[row] for row in range(first, first + many)):
                row, shift, prefix = digit
                values = start + (row - first) * size * width
                with locks[digit]:
                    loops.count(values, size, shift, prefix, places[digit], wide=wide)

        native.look(entries, see)
        for digit, counts in mine.items():
            if digit[1] == highest and not all_finite(counts, dtype):
                entries.refuse_infinite()

    survey.each(look)
    # A digit at a time, so that no process holds the counts of all the others at once.
    for digit in wanted:
        yield digit, np.sum(together(survey.processes, partial(mine.pop, digit)), axis=0)
