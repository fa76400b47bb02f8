"""Which cells a benchmark has, in order, and how long they are expected to take."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader

from sta_lightning.arithmetic import rank
from sta_lightning.arithmetic.registry import LEARNED_METHODS
from sta_lightning.benchmark.cells import Cell, windows
from sta_lightning.benchmark.entries import is_learned, made, statistics_wanted
from sta_lightning.benchmark.evaluation import device_of
from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.settings import BenchmarkSettings, MethodEntry
from sta_lightning.encoders import build_encoder
from sta_lightning.tasks import get_task
from sta_lightning.tasks.task import Split

# A training step is a forward pass and a backward pass, which takes twice as long.
_TRAINED = 3.0
# The gradient of a single image takes about four times a forward pass.
_SCORED = 4.0
# Merging, building encoders and writing steps take the time of about so many images, for every
# model that is evaluated.
_MERGED = 250.0
_MEASURED_BATCHES = 3


def plan(settings: BenchmarkSettings) -> list[Cell]:
    """Every cell, each after those that it needs.

    Args:
        settings: checked and expanded.

    Raises:
        StaError: if a task is unknown, or given twice.
    """
    suite = Suite(settings.models)
    sizes = _Sizes(settings, suite)
    cells: list[Cell] = []
    for seed in settings.seeds:
        cells.append(Cell("heads", seed))
    for seed in settings.seeds:
        for task in suite.tasks:
            cells.append(Cell("models", seed, (task,), (Cell("heads", seed).id,), sizes.training(task)))
    for seed in settings.seeds:
        cells += _of_seed(settings, suite.tasks, seed, sizes)
    return cells


def _of_seed(settings: BenchmarkSettings, tasks: tuple[str, ...], seed: int, sizes: _Sizes) -> list[Cell]:
    needs = tuple(Cell("models", seed, (task,)).id for task in tasks)
    test = sizes.of(tasks, "test")
    cells = [Cell("references", seed, (), needs, 2 * test + sizes.control("test"))]
    if seed == settings.seeds[0]:
        cells.append(Cell("conflict", seed, (), needs, _MERGED))
    for key, entry in settings.methods.items():
        cells.append(Cell("fusion", seed, (key,), needs, sizes.fusion(entry, tasks)))
    if settings.pairs:
        for pair in itertools.combinations(tasks, 2):
            images = len(settings.pairs) * (_MERGED + sizes.of(pair, "test"))
            cells.append(Cell("pair", seed, pair, needs, images))
    if settings.forget_methods:
        everyone = any(made(entry, 0, forgetting=True).many for entry in settings.forget_methods.values())
        for task in tasks:
            others = tuple(Cell("models", other, (task,)).id for other in settings.seeds if everyone)
            wanted = tuple(dict.fromkeys((*needs, *others)))
            cells.append(Cell("forgetting", seed, (task,), wanted, sizes.forgetting(task)))
        if settings.trade_off.methods:
            values = sum(len(v) for varied in settings.trade_off.methods.values() for v in varied.values())
            for task in tasks:
                images = values * (_MERGED + sizes.of((task,), "test") + sizes.control("test"))
                cells.append(Cell("trade_off", seed, (task,), needs, images))
    curves = settings.curves
    stairs = len({rank(len(tasks), p) for p in curves.p})
    for key in curves.p_methods if curves.p else ():
        images = stairs * (_MERGED + sizes.of(tasks, curves.p_split))
        cells.append(Cell("curve_p", seed, (key,), needs, images))
    for key in curves.samples_methods if curves.samples else ():
        cells.append(Cell("curve_samples", seed, (key,), needs, len(curves.samples) * (_MERGED + test)))
    for key in curves.tasks_methods if curves.tasks else ():
        for size in curves.tasks:
            images = sum(_MERGED + sizes.of(subset, "test") for subset in windows(tasks, size))
            cells.append(Cell("curve_tasks", seed, (key, str(size)), needs, images))
    for key in curves.level_methods:
        cells.append(Cell("level", seed, (key,), needs, _MERGED + sizes.of(tasks, "validation")))
    return cells


class _Sizes:
    """How many images each cell sends through an encoder."""

    def __init__(self, settings: BenchmarkSettings, suite: Suite) -> None:
        self.settings, self.suite = settings, suite
        self._counts: dict[tuple[str, Split], int] = {}

    def count(self, name: str, split: Split) -> int:
        """Images of one split of one set."""
        if (name, split) not in self._counts:
            if split == "validation" and split not in get_task(self.suite.members[name].spec).splits:
                self._counts[name, split] = self.count(name, "test") // 10
            else:
                self._counts[name, split] = len(self.suite.datamodule(name).dataset(split))
        return self._counts[name, split]

    def of(self, tasks: Sequence[str], split: Split) -> float:
        """Images of some tasks."""
        return float(sum(self.count(task, split) for task in tasks))

    def control(self, split: Split) -> float:
        """Images of the control."""
        return float(self.count(self.suite.control, split))

    def training(self, task: str) -> float:
        """Images of a fine-tuning, as forward passes."""
        scored = _SCORED * sum(samples for _, samples in statistics_wanted(self.settings))
        if self.settings.finetuned is not None:
            return scored
        own = self.suite.settings.fine_tuning(task)
        trained = _TRAINED * (own.epochs or 1) * self.count(task, "train")
        return trained + self.count(task, "validation") + scored

    def fusion(self, entry: MethodEntry, tasks: tuple[str, ...]) -> float:
        """Images of one method of the table."""
        test = _MERGED + self.of(tasks, "test")
        learning = 0.0
        if is_learned(entry):
            own = {**LEARNED_METHODS[entry.method].settings, **entry.settings}
            learning = _TRAINED * own["steps"] * own["batch_size"] * len(tasks)
        tuning = len(entry.choices()) * (_MERGED + learning + self.of(tasks, "validation"))
        return (2 if entry.tune else 1) * (test + learning) + tuning

    def forgetting(self, task: str) -> float:
        """Images of one forgotten task, by all methods."""
        test = _MERGED + self.of((task,), "test") + self.control("test")
        one = _MERGED + self.of((task,), "validation") + self.control("validation")
        return sum(
            (2 if entry.tune else 1) * test + len(entry.choices()) * one
            for entry in self.settings.forget_methods.values()
        )


def images_per_second(settings: BenchmarkSettings) -> float:
    """Images that one process sends through the encoder in a second, measured on a few.

    Raises:
        StaError: if the encoder or the images are not there.
    """
    suite, models = Suite(settings.models), settings.models
    loader = DataLoader(suite.images(suite.tasks[0], "test"), batch_size=models.evaluation_batch_size)
    batches = [images for (images, _), _ in zip(loader, range(_MEASURED_BATCHES), strict=False)]
    encoder = build_encoder(models.encoder, models.pretrained, models.image_size).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    device = device_of(models.accelerator)
    encoder.to(device)
    try:
        with torch.inference_mode():
            encoder(batches[0].to(device))
            begun = time.perf_counter()
            total = sum(encoder(batch.to(device)).cpu().shape[0] for batch in batches)
            return float(total / (time.perf_counter() - begun))
    finally:
        torch.set_num_threads(threads)


def described(
    settings: BenchmarkSettings, cells: Sequence[Cell], waiting: Sequence[Cell], rate: float | None
) -> str:
    """The plan as text: kinds of cells, how many are done, the time expected.

    Args:
        settings: of the benchmark.
        cells: all.
        waiting: those that are not done.
        rate: images a second and process; ``None`` if it is not known.
    """
    rows = [("what", "cells", "done", "images", "expected")]
    left = {cell.id for cell in waiting}
    for kind in (*dict.fromkeys(cell.kind for cell in cells), None):
        own = [cell for cell in cells if kind in (cell.kind, None)]
        to_do = [cell for cell in own if cell.id in left]
        images = sum(cell.images for cell in to_do)
        rows.append(
            (
                "together" if kind is None else _NAMES.get(kind, kind),
                str(len(own)),
                str(len(own) - len(to_do)),
                f"{images:,.0f}".replace(",", " "),
                duration(images / rate / settings.devices) if rate else "?",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def duration(seconds: float) -> str:
    """Seconds in words: ``48 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


_NAMES = {
    "models": "fine-tuning and scoring",
    "fusion": "all tasks fused (Table 2)",
    "pair": "pairs fused (Fig. 3)",
    "forgetting": "forgetting (Table 3)",
    "trade_off": "forgetting against p and γ",
    "curve_p": "accuracy against p",
    "curve_samples": "accuracy against samples",
    "curve_tasks": "accuracy against tasks",
    "level": "levels beside the curves",
    "conflict": "sign conflict",
}
