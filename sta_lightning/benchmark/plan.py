"""Which cells a benchmark has, in order, and how long they are expected to take."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Iterable, Sequence

import torch
from torch.utils.data import DataLoader

from sta_lightning.arithmetic import rank
from sta_lightning.arithmetic.registry import LEARNED_METHODS
from sta_lightning.benchmark.cells import Cell, windows
from sta_lightning.benchmark.entries import finetunings, is_learned, made, statistics_wanted
from sta_lightning.benchmark.evaluation import device_of, threads
from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.settings import BenchmarkSettings, Finetuning, MethodEntry
from sta_lightning.encoders import build_encoder
from sta_lightning.engine.defaults import AUTO
from sta_lightning.modules.foretelling import candidates
from sta_lightning.tasks import get_task
from sta_lightning.tasks.task import Split

# A training step is a forward pass and a backward pass, which takes twice as long.
_TRAINED = 3.0
# A linearised step is a forward-mode pass and the backward pass through it.
_LINEARISED = 2.5
# The gradient of a single image takes about four times a forward pass.
_SCORED = 4.0
# Merging, building encoders and writing steps take the time of about so many images, for every
# model that is evaluated.
_MERGED = 250.0
_MEASURED_BATCHES = 3


def plan(settings: BenchmarkSettings) -> list[Cell]:
    """Every cell, each after those that it needs.

    Raises:
        StaError: if a task is unknown, or given twice.
    """
    suite = Suite(settings.models)
    sizes = _Sizes(settings, suite)
    cells = [Cell("heads", seed) for seed in settings.seeds]
    for head in tuple(cells):
        for task in suite.tasks:
            for kind in finetunings(settings):
                cells.append(_models(head.seed, task, kind, (head.id,), sizes.training(task, kind)))
    for seed in settings.seeds:
        cells += _of_seed(settings, suite, seed, sizes)
    return cells


def _of_seed(settings: BenchmarkSettings, suite: Suite, seed: int, sizes: _Sizes) -> list[Cell]:
    tasks, curves, cells = suite.tasks, settings.curves, []
    kinds = finetunings(settings)
    needs = tuple(_models(seed, task, kind).id for task in tasks for kind in kinds)
    test = sizes.merged(tasks, "test")

    def add(kind: str, images: float, *names: str, more: tuple[str, ...] = ()) -> None:
        cells.append(Cell(kind, seed, names, tuple(dict.fromkeys((*needs, *more))), images))

    add("references", 2 * sizes.of(tasks, "test") + sizes.of([suite.control], "test"))
    if seed == settings.seeds[0]:
        add("conflict", _MERGED)
    for key, entry in settings.methods.items():
        add("fusion", sizes.fusion(entry, tasks), key)
    if settings.pairs:
        for pair in itertools.combinations(tasks, 2):
            add("pair", len(settings.pairs) * sizes.merged(pair, "test"), *pair)
    if settings.forget_methods:
        everyone = any(made(entry, 0).many for entry in settings.forget_methods.values())
        for task in tasks:
            others = tuple(
                _models(other, task, kind).id for other in settings.seeds if everyone for kind in kinds
            )
            add("forgetting", sizes.forgetting(task), task, more=others)
        values = sum(
            not settings.forget_methods[key].says({name: value})
            for key, varied in settings.trade_off.methods.items()
            for name, several in varied.items()
            for value in several
        )
        for task in tasks if settings.trade_off.methods else ():
            rows = Cell("forgetting", seed, (task,)).id  # has the others
            add("trade_off", values * sizes.merged((task, suite.control), "test"), task, more=(rows,))
    for key in curves.p_methods if curves.p else ():
        stairs = len({rank(len(tasks), p) for p in curves.p})
        add("curve_p", stairs * sizes.merged(tasks, curves.p_split), key)
    for key in curves.samples_methods if curves.samples else ():
        add("curve_samples", len(curves.samples) * test, key)
    for key, size in itertools.product(curves.tasks_methods, curves.tasks):
        subsets = windows(tasks, size)
        add("curve_tasks", sum(sizes.merged(subset, "test") for subset in subsets), key, str(size))
    for key in curves.level_methods:
        add("level", sizes.merged(tasks, "validation"), key)
    return cells


def _models(seed: int, task: str, kind: Finetuning, needs: tuple[str, ...] = (), images: float = 0.0) -> Cell:
    return Cell("models", seed, (task,) if kind == "plain" else (task, kind), needs, images)


class _Sizes:
    """How many images each cell sends through an encoder."""

    def __init__(self, settings: BenchmarkSettings, suite: Suite) -> None:
        self.settings, self.suite = settings, suite
        self.count = functools.cache(self._count)

    def _count(self, name: str, split: Split) -> int:
        """Images of one split of one set."""
        if split == "validation" and split not in get_task(self.suite.members[name].spec).splits:
            return self.count(name, "test") // 10
        return len(self.suite.datamodule(name).dataset(split))

    def of(self, sets: Iterable[str], split: Split) -> float:
        """Images of some tasks, or the control."""
        return float(sum(self.count(name, split) for name in sets))

    def merged(self, sets: Iterable[str], split: Split) -> float:
        """What one merged model takes on some sets."""
        return _MERGED + self.of(sets, split)

    def training(self, task: str, kind: Finetuning) -> float:
        """Images of a fine-tuning, as forward passes."""
        scored = _SCORED * sum(samples for _, samples in statistics_wanted(self.settings, kind))
        if self.settings.finetuned is not None:
            return scored
        own = self.suite.settings.fine_tuning(task)
        trained = _TRAINED * (own.epochs or 1) * self.count(task, "train")
        longer = _LINEARISED if kind == "linearised" else 1.0
        return longer * (trained + self.count(task, "validation")) + scored

    def fusion(self, entry: MethodEntry, tasks: tuple[str, ...]) -> float:
        """Images of one method of the table."""
        learning = 0.0
        if is_learned(entry):
            own = {**LEARNED_METHODS[entry.method].settings, **entry.settings}
            samples = entry.samples or self.settings.models.samples
            learning = _TRAINED * own.get("steps", 0) * own.get("batch_size", samples) * len(tasks)
        if entry.method == AUTO:
            found = candidates(grams=True)
            learning *= 2  # of the fits to the halves, and to all
            learning += len(found) * _MERGED + sum(map(len, found.values())) * samples * len(tasks)
        tested = self.merged(tasks, "test") + learning
        tuning = len(entry.choices()) * (self.merged(tasks, "validation") + learning)
        return (2 if entry.tune else 1) * tested + tuning

    def forgetting(self, task: str) -> float:
        """Images of one forgotten task, by all methods."""
        sets = (task, self.suite.control)
        return sum(
            (2 if entry.tune else 1) * self.merged(sets, "test")
            + len(entry.choices()) * self.merged(sets, "validation")
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
    device = device_of(models.accelerator)
    encoder = build_encoder(models.encoder, models.pretrained, models.image_size).eval().to(device)
    with threads(settings.threads), torch.inference_mode():
        encoder(batches[0].to(device))
        begun = time.perf_counter()
        total = sum(encoder(batch.to(device)).cpu().shape[0] for batch in batches)
        return float(total / (time.perf_counter() - begun))


def described(
    settings: BenchmarkSettings, cells: Sequence[Cell], waiting: Sequence[Cell], rate: float | None
) -> str:
    """The plan as text: kinds of cells, how many are done, the time expected.

    ``rate`` is in images a second and process; ``None`` if it is not known.
    """
    rows = [("what", "cells", "done", "images", "expected")]
    left = {cell.id for cell in waiting}
    for kind in (*dict.fromkeys(cell.kind for cell in cells), None):
        own = [cell for cell in cells if kind in (cell.kind, None)]
        to_do = [cell for cell in own if cell.id in left]
        images = sum(cell.images for cell in to_do)
        name = "together" if kind is None else _NAMES.get(kind, kind)
        expected = duration(images / rate / settings.devices) if rate else "?"
        done = len(own) - len(to_do)
        rows.append((name, str(len(own)), str(done), f"{images:,.0f}".replace(",", " "), expected))
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join("  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows)


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
