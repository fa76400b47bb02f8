"""Cells on a ``concurrent.futures`` executor: this process, a pool, or a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from sta_lightning.benchmark.cells import Cell, Found
from sta_lightning.benchmark.evaluation import threads
from sta_lightning.benchmark.kinds import compute, every_seed
from sta_lightning.benchmark.models import Models
from sta_lightning.benchmark.progress import bar, quiet, say
from sta_lightning.benchmark.settings import BenchmarkSettings
from sta_lightning.benchmark.steps import UnfinishedError
from sta_lightning.errors import StaError
from sta_lightning.signals import orderly_end

_MOST_POOLS = 3


@dataclass(frozen=True)
class Done:
    """A cell that was computed or found.

    Attributes:
        computed: how many of its steps were computed now.
        seconds: step -> how long it took, whenever that was.
        outcome: of its last step, in a few words.
    """

    found: Found
    computed: int
    seconds: dict[str, float]
    outcome: str


def run_cells(settings: BenchmarkSettings, cells: Sequence[Cell]) -> dict[str, Done]:
    """Compute every cell, or read what is there.

    What a cell computes is on the disk when it is finished, and a cell depends on nothing else: one
    that was lost with its process is computed again, and no number changes.

    Returns:
        Identity of a cell -> what came of it, in the order of ``cells``.

    Raises:
        StaError: what a cell raised, or the processes were killed again and again. Cells that were
            finished before are kept.
    """
    found: dict[str, Done] = {}
    progress = bar("benchmark", sum(round(cell.images) for cell in cells), unit="image")
    try:
        for _ in range(_MOST_POOLS):
            try:
                with _executor(settings) as executor:
                    for cell in _run(executor, settings, cells, found):
                        _tell(progress, cell, found[cell.id])
                return {cell.id: found[cell.id] for cell in cells}
            except BrokenProcessPool:
                say("A process was killed, perhaps for want of memory: its cells are computed again.")
    finally:
        progress.close()
        kept = sum(not done.computed for done in found.values())
        if kept:
            say(f"{kept} cells found done (--force computes everything again)")
    raise StaError(
        f"Processes were killed {_MOST_POOLS} times, perhaps for want of memory. What is done is kept in "
        f"{settings.output}; ask for fewer devices or a smaller cache_gigabytes."
    )


def unfinished(settings: BenchmarkSettings, cells: Sequence[Cell]) -> list[Cell]:
    """The cells of a plan that are not whole yet, told without computing anything."""
    seeds = every_seed(settings, compute=False)
    waiting: dict[str, Cell] = {}
    for cell in cells:
        try:
            if not waiting.keys() & set(cell.needs):
                compute(seeds, cell)
                continue
        except UnfinishedError:
            pass
        waiting[cell.id] = cell
    return list(waiting.values())


def _tell(progress: Any, cell: Cell, done: Done) -> None:
    if done.computed:
        say(f"{cell.id:<58} {done.outcome:<34} {sum(done.seconds.values()):6.1f} s")
        progress.update(round(cell.images))
    else:
        # What was there already says nothing about the speed.
        progress.total -= round(cell.images)


def _run(
    executor: Executor, settings: BenchmarkSettings, cells: Sequence[Cell], found: dict[str, Done]
) -> Iterator[Cell]:
    """Hand out every cell whose needs are found, until all are; yields what it put in ``found``."""
    waiting = [cell for cell in cells if cell.id not in found]
    running: dict[Future[Done], Cell] = {}
    while waiting or running:
        for cell in [cell for cell in waiting if found.keys() >= set(cell.needs)]:
            waiting.remove(cell)
            future = executor.submit(_work_or_end, settings, cell, os.getcwd())
            running[future] = cell
            if future.done():  # computed in this process: tell of it before the next
                break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            cell = running.pop(future)
            found[cell.id] = future.result()
            yield cell


# The models of the last settings: they hold the images in memory.
_last: tuple[BenchmarkSettings, dict[int, Models]] | None = None
# Lightning and PyTorch's random state are those of a process: one cell at a time.
_alone = threading.Lock()


def _work_or_end(settings: BenchmarkSettings, cell: Cell, folder: str) -> Done:
    """Compute a cell; SIGTERM ends a process of a pool, which would begin the next cell."""
    try:
        return work(settings, cell, folder)
    except SystemExit as ended:
        if multiprocessing.parent_process() is None:
            raise
        os._exit(int(ended.code or 0))


def work(settings: BenchmarkSettings, cell: Cell, folder: str) -> Done:
    """Compute a cell in whatever process this is; relative paths start from ``folder``."""
    global _last
    with _alone, quiet(), isolate_rng(), threads(settings.threads):
        if os.getcwd() != folder:
            os.chdir(folder)
        if _last is None or _last[0] != settings:
            _last = settings, every_seed(settings)
        seeds = _last[1]
        before = {seed: len(models.runner.steps) for seed, models in seeds.items()}
        found = compute(seeds, cell)
        steps = {
            f"seed_{seed}/{step.name}": step
            for seed, models in seeds.items()
            for step in models.runner.steps[before[seed] :]
        }
    outcomes = [str(step.result.get("outcome", "")) for step in steps.values()]
    return Done(
        found,
        sum(not step.skipped for step in steps.values()),
        {name: step.seconds for name, step in steps.items()},
        outcomes[-1] if outcomes else "",
    )


class _Here(Executor):
    """Computes at once, in this process; an exception goes straight to the caller."""

    @override
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _executor(settings: BenchmarkSettings) -> AbstractContextManager[Executor]:
    """What the cells are computed on.

    Raises:
        StaError: if the cluster cannot be reached, or what it takes is not installed.
    """
    if settings.cluster is not None:
        return _dask(settings.cluster, gpus=settings.models.accelerator != "cpu")
    return nullcontext(_Here()) if settings.devices == 1 else _pool(settings)


@contextmanager
def _dask(cluster: str, *, gpus: bool) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as error:
        raise StaError(
            "cluster: Dask is not installed; it comes with `pip install sta-lightning[cluster]`."
        ) from error
    try:
        if cluster.endswith(".json"):
            Path(cluster).stat()  # Dask would wait for the file
        where = {"scheduler_file" if cluster.endswith(".json") else "address": cluster}
        client = Client(**where, timeout="30s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise StaError(
            f"cluster: no Dask scheduler answers at '{cluster}': {error}. Start it, or give its address or "
            "scheduler file."
        ) from error
    with client:
        # Not pure: what a cell gives depends on what is on the disk, too.
        executor = client.get_executor(pure=False, **({"resources": {"GPU": 1}} if gpus else {}))
        try:
            yield executor
        finally:
            executor.shutdown(wait=False)


@contextmanager
def _pool(settings: BenchmarkSettings) -> Iterator[Executor]:
    spawn = multiprocessing.get_context("spawn")
    numbers = spawn.SimpleQueue()
    for number in range(settings.devices):
        numbers.put(number)
    gpus = torch.cuda.device_count() if settings.models.accelerator != "cpu" else 0
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(settings.devices, spawn, initializer=_begin, initargs=(numbers, gpus))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    pool.shutdown()


# What holds for as long as a process of several lives.
_life = ExitStack()


def _begin(numbers: Any, gpus: int) -> None:
    """Make this process one of several, each with a GPU of its own where there are some."""
    # The one that hands out is told of Ctrl+C, and ends the others by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _life.enter_context(orderly_end())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    number = numbers.get()
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(index) for index in range(gpus)]
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]


def _end_with_parent() -> None:
    """End this process when the one that hands out was killed, and could not end the others."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
