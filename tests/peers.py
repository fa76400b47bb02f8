"""Processes of a merge played by threads: quick, and every exception can be looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sta_lightning.arithmetic.workers import Processes

TIMEOUT = 30.0  # seconds until a gathering that not all take part in fails


@dataclass
class Peer:
    """One of several."""

    rank: int
    size: int
    barrier: threading.Barrier
    values: list[Any]

    def gather(self, value: Any) -> list[Any]:
        """The values of all."""
        self.values[self.rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found


def as_processes(size: int, work: Callable[[Processes], Any]) -> list[Any]:
    """What ``work`` returns, or the exception that it raises, on each of ``size`` processes."""
    barrier, values = threading.Barrier(size, timeout=TIMEOUT), [None] * size
    outcomes: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(Peer(rank, size, barrier, values))
        except BaseException as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
