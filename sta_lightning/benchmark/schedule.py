"""Shares the cells out among processes and shows one progress display."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from sta_lightning.benchmark.cells import Cell, Found
from sta_lightning.benchmark.context import Context
from sta_lightning.benchmark.kinds import compute
from sta_lightning.benchmark.settings import BenchmarkSettings
from sta_lightning.experiment.progress import bar, quiet, say, silent


@dataclass(frozen=True)
class Done:
    """A cell that was computed or found.

    Attributes:
        found: what it adds to the results.
        computed: how many of its steps were computed now.
        seconds: how long its steps took, whenever that was.
        outcome: of its last step, in a few words.
    """

    found: Found
    computed: int
    seconds: dict[str, float]
    outcome: str


def run_cells(settings: BenchmarkSettings, cells: Sequence[Cell]) -> dict[str, Done]:
    """Compute every cell, or read what is there, in as many processes as the settings ask for.

    Args:
        settings: checked and expanded.
        cells: each after those that it needs.

    Returns:
        Identity of a cell -> what came of it, in the order of ``cells``.

    Raises:
        StaError: what a cell raised. Cells that were finished before are kept.
    """
    show = _Display(cells)
    try:
        work = _alone if settings.devices == 1 else _shared_out
        found = work(settings, cells, show)
    finally:
        show.close()
    return {cell.id: found[cell.id] for cell in cells}


def _alone(settings: BenchmarkSettings, cells: Sequence[Cell], show: _Display) -> dict[str, Done]:
    found: dict[str, Done] = {}
    with _threads(settings.threads):
        context = Context(settings)
        for cell in cells:
            found[cell.id] = _compute(context, cell)
            show.finished(cell, found[cell.id])
    return found


def _shared_out(settings: BenchmarkSettings, cells: Sequence[Cell], show: _Display) -> dict[str, Done]:
    spawn = multiprocessing.get_context("spawn")
    numbers = spawn.SimpleQueue()
    for number in range(settings.devices):
        numbers.put(number)
    others = set(multiprocessing.active_children())
    found: dict[str, Done] = {}
    waiting = list(cells)
    running: dict[Future[Done], Cell] = {}
    pool = ProcessPoolExecutor(
        settings.devices,
        mp_context=spawn,
        initializer=_begin,
        initargs=(settings, numbers, torch.cuda.device_count()),
    )
    try:
        while waiting or running:
            # Only as many as there are processes: what is next is decided when one is free.
            for cell in [cell for cell in waiting if all(need in found for need in cell.needs)]:
                if len(running) == settings.devices:
                    break
                waiting.remove(cell)
                running[pool.submit(_work, cell)] = cell
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                found[cell.id] = future.result()
                show.finished(cell, found[cell.id])
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    pool.shutdown()
    return found


_worker: Context | None = None


def _begin(settings: BenchmarkSettings, numbers: Any, gpus: int) -> None:
    """Make this process one of several."""
    global _worker
    # The one that shares out is told of Ctrl+C, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    number = numbers.get()
    if settings.models.accelerator != "cpu" and gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(index) for index in range(gpus)]
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    torch.set_num_threads(settings.threads)
    _worker = Context(settings)


def _end_with_parent() -> None:
    """End this process when the one that shares out was killed, and could not end the others."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(cell: Cell) -> Done:
    assert _worker is not None
    return _compute(_worker, cell)


def _compute(context: Context, cell: Cell) -> Done:
    before = {one.seed: len(one.runner.steps) for one in context.opened}
    with quiet(), silent(), isolate_rng():
        found = compute(context, cell)
    steps = {
        f"seed_{one.seed}/{step.name}": step
        for one in context.opened
        for step in one.runner.steps[before.get(one.seed, 0) :]
    }
    outcomes = [str(step.result.get("outcome", "")) for step in steps.values()]
    return Done(
        found,
        sum(not step.skipped for step in steps.values()),
        {name: step.seconds for name, step in steps.items()},
        outcomes[-1] if outcomes else "",
    )


class _Display:
    """One bar over the images of all cells, and a line for each cell that was computed."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._bar = bar("benchmark", sum(round(cell.images) for cell in cells), unit="image")
        self._found = 0

    def finished(self, cell: Cell, done: Done) -> None:
        """Tell of a cell."""
        if not done.computed:
            # What was there already says nothing about the speed.
            self._found += 1
            self._bar.total -= round(cell.images)
            return
        say(f"{cell.id:<58} {done.outcome:<34} {sum(done.seconds.values()):6.1f} s")
        self._bar.update(round(cell.images))

    def close(self) -> None:
        """Close the bar and tell what was there already."""
        self._bar.close()
        if self._found:
            say(f"{self._found} cells found done (--force computes everything again)")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
