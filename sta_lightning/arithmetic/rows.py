"""Numbers that a method makes of the models' entries, in machine code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sta_lightning.arithmetic.problem import Addresses, Entries
from sta_lightning.arithmetic.states import cached_size
from sta_lightning.kernels import Loops

_ROOM = 1 << 17  # numbers that are made at once, of all rows: they stay in a core's cache


class NativeRows(NamedTuple):
    """Rows of as many numbers as a tensor has entries, for tensors that are read as float32.

    Attributes:
        dtype: of the numbers.
        fill: makes them: (loops, addresses, how many entries, address of the rows, one after
            another).
    """

    dtype: torch.dtype
    fill: Callable[[Loops, Addresses, int, int], None]

    def look(
        self,
        entries: Entries,
        many: int,
        see: Callable[[Loops, int, Tensor], None],
        pieces: Sequence[slice] | None = None,
    ) -> None:
        """Show the rows of a tensor, some entries at a time, the workers sharing them.

        Args:
            entries: a tensor whose ``loops`` are there.
            many: how many rows there are.
            see: gets the loops, the number of the piece and the rows ``[many, some]``, which are
                there until it returns.
            pieces: of the flattened tensor; None for all of it.
        """
        loops = entries.loops
        assert loops is not None
        step = max(1, min(cached_size(entries.device), _ROOM // many))
        width = self.dtype.itemsize // 4

        def piece(numbered: tuple[int, slice]) -> None:
            number, where = numbered
            addresses, _held = entries.addresses(where)
            size = where.stop - where.start
            for at in range(0, size, step):
                count = min(step, size - at)
                room = entries.workers.buffer(len(entries.sources), many * count * width)
                self.fill(loops, addresses.moved(at), count, room.data_ptr())
                see(loops, number, room.view(self.dtype).view(many, count))

        entries.workers.map(piece, list(enumerate(entries.pieces() if pieces is None else pieces)))
