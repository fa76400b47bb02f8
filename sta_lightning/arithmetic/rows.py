"""Numbers that a method makes of the models' entries, in machine code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sta_lightning.arithmetic.entries import Addresses, Entries
from sta_lightning.arithmetic.states import cached_size
from sta_lightning.kernels import Loops

_ROOM = 1 << 17  # numbers that are made at once: they stay in a core's cache
_LEAST = 1 << 12  # of a row: in fewer a call costs more than its work


class NativeRows(NamedTuple):
    """A row of numbers for every task, as many as a tensor has entries, that is read as float32.

    Attributes:
        dtype: of the numbers.
        fill: makes them: (loops, addresses, how many entries, address of the rows, one after
            another).
        apart: whether a row depends on its own task alone, and can be made from its address.
    """

    dtype: torch.dtype
    fill: Callable[[Loops, Addresses, int, int], None]
    apart: bool = False

    def look(
        self,
        entries: Entries,
        see: Callable[[Loops, int, Tensor], None],
        pieces: Sequence[slice] | None = None,
    ) -> None:
        """Show the rows of a tensor, some entries at a time, the workers sharing them.

        Args:
            entries: a tensor whose ``loops`` are there.
            see: gets the loops, the first row that is shown and the rows ``[many, some]``: one, if
                they are made apart, else all. They are there until it returns.
            pieces: of the flattened tensor; None for all of it.
        """
        loops, tasks = entries.loops, len(entries.finetuned)
        assert loops is not None
        many = 1 if self.apart else tasks
        step = min(cached_size(entries.device), max(_LEAST, _ROOM // many))
        width = self.dtype.itemsize // 4

        def piece(numbered: tuple[int, slice]) -> None:
            number, where = numbered
            addresses, _held = entries.addresses(where)
            size = where.stop - where.start
            for turn in range(0, tasks, many):
                first = (turn + number) % tasks if self.apart else 0  # another one for each thread
                for at in range(0, size, step):
                    count = min(step, size - at)
                    room = entries.workers.buffer(len(entries.sources), many * count * width)
                    made = room.view(self.dtype).view(many, count)
                    self.fill(loops, addresses.moved(at, slice(first, first + many)), count, made.data_ptr())
                    see(loops, first, made)

        entries.workers.map(piece, list(enumerate(entries.pieces() if pieces is None else pieces)))
