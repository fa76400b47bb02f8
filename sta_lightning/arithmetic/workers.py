"""Who does the work: threads of one process, and the tensors shared out among processes."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sta_lightning.errors import StaError
from sta_lightning.kernels import Loops

Item = TypeVar("Item")
Result = TypeVar("Result")

_SHARES = 4  # of each thread, so that a slow one holds nobody up for long


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}
        self.working = False


def usable_threads() -> int:
    """How many threads have a processor each: as many as PyTorch uses, or fewer.

    PyTorch's number follows ``OMP_NUM_THREADS`` and ``torch.set_num_threads``.
    """
    return min(torch.get_num_threads(), usable_processors())


def usable_processors() -> int:
    """How many processors this process may run on, within its control group's share; at least 1."""
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(able, group_limit())))


def group_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Processors that this process's control groups (Linux, either version) give it; else inf."""
    found = math.inf
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text(encoding="ascii").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            # A container may see its own group as the root, whatever this path says.
            place = root / "cpu" if controllers else root
            inner = place / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if folder == root and controllers:
                    break
                found = min(found, _quota(folder))
                if folder == root:
                    break
    return found


def _quota(folder: Path) -> float:
    """The limit that one group states."""
    with contextlib.suppress(OSError, ValueError):
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{what}_us").read_text(encoding="ascii") for what in ("quota", "period")
            )
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else math.inf
    return math.inf


class Workers:
    """Some threads that stay until the block ends; PyTorch starts no further ones inside them.

    Args:
        threads: how many; with one, everything is done by the caller.
        loops: the compiled loops that they may use; ``None`` for none.
    """

    def __init__(self, threads: int = 1, loops: Loops | None = None) -> None:
        self.threads = max(1, threads)
        self.loops = loops
        self._pool: ThreadPoolExecutor | None = None
        self._own = _Buffers()

    def __enter__(self) -> Workers:
        if self.threads > 1:
            self._torch_threads = torch.get_num_threads()
            self._pool = ThreadPoolExecutor(
                self.threads, thread_name_prefix="sta", initializer=torch.set_num_threads, initargs=(1,)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
            torch.set_num_threads(self._torch_threads)  # a worker's number is that of threads to come

    def buffer(self, number: int, size: int) -> Tensor:
        """Float32 ``[size]`` of the calling thread, until it asks for that number again."""
        found = self._own.buffers.get(number)
        if found is None or found.numel() < size:
            found = self._own.buffers[number] = torch.empty(size, dtype=torch.float32, device="cpu")
        return found if found.numel() == size else found[:size]

    def map(
        self, work: Callable[[Item], Result], items: Iterable[Item], *, apart: bool = False
    ) -> list[Result]:
        """Do the work on every item; the first error stops the others and is raised.

        ``apart`` where one item is much work: threads take one at a time. Inside the work the
        thread that asks does everything.
        """
        waiting = list(items)
        if self._pool is None or len(waiting) < 2 or self._own.working:
            return [work(item) for item in waiting]

        def do(share: list[Item]) -> list[Result]:
            self._own.working = True
            try:
                return [work(item) for item in share]
            finally:
                self._own.working = False

        # A future for each item would cost as much as a piece; on an error the pool's map cancels
        # what has not begun.
        step = 1 if apart else -(-len(waiting) // (_SHARES * self.threads))
        shares = [waiting[at : at + step] for at in range(0, len(waiting), step)]
        return [result for share in self._pool.map(do, shares) for result in share]


class Processes(Protocol):
    """The processes among which tensors are shared out."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order, on every one of them."""


@dataclass(frozen=True)
class Alone:
    """One process."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """The one value."""
        return [value]


def together(processes: Processes, work: Callable[[], Result]) -> list[Result]:
    """Do some work on every process and gather what came out; if one fails, all of them raise.

    Raises:
        StaError: what the first process to fail raised, on every other process too.
    """
    error: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as caught:
        if processes.size == 1:
            raise
        error = caught
    found = processes.gather((None if error is None else f"{error}", result))
    if error is not None:
        raise error
    for rank, (message, _) in enumerate(found):
        if message is not None:
            raise StaError(f"process {rank}: {message}")
    return [value for _, value in found]


def shared_out(sizes: Mapping[str, int], processes: Processes) -> Iterator[str]:
    """This process's names: largest first, each to the process that has the least so far."""
    loads = [0] * processes.size
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[name]
        if rank == processes.rank:
            yield name
