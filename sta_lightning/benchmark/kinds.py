"""The kinds of cells: which measurements make up each, and what it adds to the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from sta_lightning.arithmetic import rank
from sta_lightning.arithmetic.vectors import sign_conflict
from sta_lightning.benchmark.cells import Cell, Found, Run, windows
from sta_lightning.benchmark.entries import entry_key, made, shown, statistics_wanted
from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.models import Models, accuracies
from sta_lightning.benchmark.results import (
    FINE_TUNED,
    PRETRAINED,
    ZERO_SHOT,
    CurvePoint,
    ForgettingResult,
    FusionResult,
    Setting,
    TradeOffPoint,
)
from sta_lightning.benchmark.settings import BenchmarkSettings, Choice, MethodEntry
from sta_lightning.modules.parts import read_encoder
from sta_lightning.tasks.task import Split


class Context:
    """Every seed of a benchmark, as one process sees it.

    Args:
        settings: checked and expanded.
        compute: whether what is not done is computed; otherwise it raises
            :class:`~sta_lightning.benchmark.steps.UnfinishedError`.
    """

    def __init__(self, settings: BenchmarkSettings, *, compute: bool = True) -> None:
        self.settings = settings
        self.suite = Suite(settings.models)
        self.seeds = {seed: Models(settings, self.suite, seed, compute=compute) for seed in settings.seeds}


def heads(context: Context, cell: Cell) -> Found:
    """The heads of every task and of the control."""
    for name in context.suite.members:
        context.seeds[cell.seed].head(name)
    return Found()


def models(context: Context, cell: Cell) -> Found:
    """One task's fine-tuned encoder, and all that is scored on it."""
    own = context.seeds[cell.seed]
    (task,) = cell.names
    encoder = own.encoder(task)
    for what, samples in statistics_wanted(context.settings):
        own.statistic(task, what, samples)
    return Found(extra={f"hash/{task}/{cell.seed}": own.runner.digest(encoder)})


def references(context: Context, cell: Cell) -> Found:
    """The pretrained model on every task and the control, each fine-tuned model on its own task."""
    own, suite, seed = context.seeds[cell.seed], context.suite, cell.seed
    sets = (*suite.tasks, suite.control)
    (zero,) = own.measured("references/zero_shot", [own.zero_shot()], sets, "test").result["models"]
    tuned: dict[str, str] = {}
    for task in suite.tasks:
        step = own.measured(f"references/fine_tuned_{task}", [own.finetuned(task)], [task], "test")
        tuned |= step.result["models"][0]["correct"]
    found = accuracies(zero)
    accuracy = {task: found[task] for task in suite.tasks}
    finetuned = accuracies({"correct": tuned})
    control = found[suite.control]
    return Found(
        fusion=(
            FusionResult(ZERO_SHOT, "published", seed, suite.tasks, accuracy),
            FusionResult(FINE_TUNED, "published", seed, suite.tasks, finetuned),
        ),
        forgetting=tuple(
            ForgettingResult(PRETRAINED, "published", seed, task, accuracy[task], control)
            for task in suite.tasks
        ),
        extra={f"counts/{seed}": suite.counts()},
    )


def fusion(context: Context, cell: Cell) -> Found:
    """One method on all tasks, as published and, if there is a grid, as tuned on validation."""
    settings, seed = context.settings, cell.seed
    own, tasks = context.seeds[seed], context.suite.tasks
    (key,) = cell.names
    entry, first = settings.methods[key], seed == settings.seeds[0]
    candidate = own.fused(entry, tasks, write=first and key == settings.publish)
    step = own.measured(f"fusion/{key}/published", [candidate], tasks, "test")
    (published,) = step.result["models"]
    rows = [FusionResult(key, "published", seed, tasks, accuracies(published), shown(entry, {}))]
    correct: dict[Run, Mapping[str, str]] = {(key, "published", seed): published["correct"]}
    points: list[CurvePoint] = []
    extra: dict[str, Any] = {}
    if first and key == settings.selection:
        # In the order of the tables.
        extra["kept"] = {
            tensor: {task: shares[task] for task in tasks if task in shares}
            for tensor, shares in published["kept"].items()
        }
    if first and key == settings.publish:
        extra["published"] = candidate.key["written"]
    if entry.tune:
        choices = entry.choices()
        grid = [own.fused(entry.with_choice(choice), tasks) for choice in choices]
        found = own.measured(f"fusion/{key}/grid", grid, tasks, "validation").result["models"]
        accuracy = [accuracies(each) for each in found]
        averages = [fmean(each.values()) for each in accuracy]
        best = max(range(len(grid)), key=lambda number: (averages[number], -number))
        choice = choices[best]
        tuned = published
        # The best may be what was published.
        if entry_key(entry.with_choice(choice), seed) != entry_key(entry, seed):
            step = own.measured(f"fusion/{key}/tuned", [grid[best]], tasks, "test")
            (tuned,) = step.result["models"]
        row = FusionResult(key, "tuned", seed, tasks, accuracies(tuned), shown(entry, choice), averages[best])
        rows.append(row)
        correct[key, "tuned", seed] = tuned["correct"]
        if key in settings.curves.scale_methods:
            (name,) = entry.tune
            points += [
                CurvePoint("scale", key, seed, float(choice[name]), average, "validation", each)
                for choice, average, each in zip(choices, averages, accuracy, strict=True)
            ]
    return Found(fusion=tuple(rows), correct=correct, curves=tuple(points), extra=extra)


def pair(context: Context, cell: Cell) -> Found:
    """Two tasks fused, by every method of the figure, as published."""
    name = "+".join(cell.names)
    rows = []
    for key in context.settings.pairs:
        entry = context.settings.methods[key]
        accuracy = _fused(context.seeds[cell.seed], f"pairs/{name}/{key}", entry, cell.names)
        rows.append(FusionResult(key, "published", cell.seed, cell.names, accuracy, shown(entry, {})))
    return Found(pairs=tuple(rows))


def curve_p(context: Context, cell: Cell) -> Found:
    """One masked method at every p."""
    curves, tasks = context.settings.curves, context.suite.tasks
    (key,) = cell.names
    points: list[CurvePoint] = []
    stairs: dict[int, float] = {}
    for p in curves.p:
        # Two p of one rank give one mask.
        stair = stairs.setdefault(rank(len(tasks), p), p)
        entry = context.settings.methods[key].with_choice({"p": stair})
        own = context.seeds[cell.seed]
        found = _fused(own, f"curve_p/{key}_{stair:g}", entry, tasks, curves.p_split)
        average = fmean(found.values())
        points.append(CurvePoint("p", key, cell.seed, p, average, curves.p_split, found))
    return Found(curves=tuple(points))


def curve_samples(context: Context, cell: Cell) -> Found:
    """One method at every number of calibration samples, on test images."""
    (key,) = cell.names
    points = []
    for samples in context.settings.curves.samples:
        entry = replace(context.settings.methods[key], samples=samples)
        own, tasks = context.seeds[cell.seed], context.suite.tasks
        found = _fused(own, f"curve_samples/{key}_{samples}", entry, tasks)
        average = fmean(found.values())
        points.append(CurvePoint("samples", key, cell.seed, samples, average, "test", found))
    return Found(curves=tuple(points))


def curve_tasks(context: Context, cell: Cell) -> Found:
    """One method on so many tasks, as published, on test images."""
    key, size = cell.names
    averages = []
    for tasks in windows(context.suite.tasks, int(size)):
        entry = context.settings.methods[key]
        own = context.seeds[cell.seed]
        found = _fused(own, f"curve_tasks/{key}/{'+'.join(tasks)}", entry, tasks)
        averages.append(fmean(found.values()))
    return Found(curves=(CurvePoint("tasks", key, cell.seed, int(size), fmean(averages), "test"),))


def level(context: Context, cell: Cell) -> Found:
    """A method as published, or the pretrained model, on validation images."""
    own, tasks = context.seeds[cell.seed], context.suite.tasks
    (key,) = cell.names
    candidate = own.zero_shot() if key == ZERO_SHOT else own.fused(context.settings.methods[key], tasks)
    (model,) = own.measured(f"level/{key}", [candidate], tasks, "validation").result["models"]
    found = accuracies(model)
    point = CurvePoint("level", key, cell.seed, 0.0, fmean(found.values()), "validation", found)
    return Found(curves=(point,))


def _fused(
    own: Models, name: str, entry: MethodEntry, tasks: tuple[str, ...], split: Split = "test"
) -> dict[str, float]:
    """Accuracy of one fused model by task, in percent."""
    candidate = own.fused(entry.with_choice({}), tasks)
    (model,) = own.measured(name, [candidate], tasks, split).result["models"]
    return accuracies(model)


def forgetting(context: Context, cell: Cell) -> Found:
    """One task forgotten by every method, as published and as the control allows."""
    (task,) = cell.names
    rows = []
    for key, entry in context.settings.forget_methods.items():
        many = made(entry, cell.seed, forgetting=True).many
        more = other_fine_tunings(context, cell.seed, task) if many else ()

        def row(
            setting: Setting,
            choice: Choice,
            key: str = key,
            entry: MethodEntry = entry,
            more: tuple[Path, ...] = more,
        ) -> ForgettingResult:
            own = context.seeds[cell.seed]
            name = f"forget/{task}/{key}/{setting}"
            (found,) = _forgotten(own, name, entry, task, "test", [choice], more)
            control = found[own.suite.control]
            chosen = shown(entry, choice, forgetting=True)
            return ForgettingResult(key, setting, cell.seed, task, found[task], control, chosen)

        rows.append(row("published", {}))
        if entry.tune:
            choice, enough = _most_forgotten(context, cell.seed, key, task, more)
            rows.append(replace(row("tuned", choice), enough=enough))
    return Found(forgetting=tuple(rows))


def other_fine_tunings(context: Context, seed: int, task: str) -> tuple[Path, ...]:
    """Those of the other seeds but one, so that every seed has a choice of its own."""
    seeds = context.settings.seeds
    before = seeds[seeds.index(seed) - 1]
    left_out = {seed, before} if len(seeds) > 2 else {seed}
    return tuple(context.seeds[other].encoder(task) for other in seeds if other not in left_out)


def _most_forgotten(
    context: Context, seed: int, key: str, task: str, more: tuple[Path, ...]
) -> tuple[Choice, bool]:
    """On validation images, the choice that forgets most and keeps enough of the control.

    Where none keeps enough, the one that keeps most; also whether one does.
    """
    own, control, entry = context.seeds[seed], context.suite.control, context.settings.forget_methods[key]
    step = own.measured(f"forget/{task}/before", [own.zero_shot()], [task, control], "validation")
    before = accuracies(step.result["models"][0])[control]
    choices = entry.choices()
    found = _forgotten(own, f"forget/{task}/{key}/grid", entry, task, "validation", choices, more)
    share = context.settings.control_share
    kept = [number for number, row in enumerate(found) if row[control] >= share * before]
    if not kept:
        return choices[max(range(len(choices)), key=lambda number: (found[number][control], -number))], False
    best = min(kept, key=lambda number: (found[number][task], -found[number][control], number))
    return choices[best], True


def trade_off(context: Context, cell: Cell) -> Found:
    """One task forgotten at every value of p or γ, on test images."""
    own, control = context.seeds[cell.seed], context.suite.control
    (task,) = cell.names
    points: list[tuple[str, TradeOffPoint]] = []
    for key, varied in context.settings.trade_off.methods.items():
        entry = context.settings.forget_methods[key]
        ((name, values),) = varied.items()
        choices: list[Choice] = [{name: value} for value in values]
        found = _forgotten(own, f"trade_off/{task}/{key}", entry, task, "test", choices)
        points += [
            (task, TradeOffPoint(key, cell.seed, float(value), row[task], row[control]))
            for value, row in zip(values, found, strict=True)
        ]
    return Found(trade_off=tuple(points))


def _forgotten(
    own: Models,
    name: str,
    entry: MethodEntry,
    task: str,
    split: Split,
    choices: list[Choice],
    more: tuple[Path, ...] = (),
) -> list[dict[str, float]]:
    """Accuracy of target and control for every choice, in percent."""
    candidates = [own.amnesic(entry.with_choice(choice), task, more) for choice in choices]
    step = own.measured(name, candidates, [task, own.suite.control], split)
    return [accuracies(each) for each in step.result["models"]]


def conflict(context: Context, cell: Cell) -> Found:
    """Sign conflict between the task vectors."""
    own, suite = context.seeds[cell.seed], context.suite
    encoders = {task: own.encoder(task) for task in suite.tasks}

    def work(folder: Path) -> dict[str, Any]:
        reference = own.pretrained_weights
        tuned = {task: read_encoder(path, reference, f"task {task!r}") for task, path in encoders.items()}
        return {"conflict": sign_conflict(reference, tuned)}

    files = {**suite.files(), **{f"finetuned/{task}": path for task, path in encoders.items()}}
    source = ("sta_lightning.arithmetic.vectors", "sta_lightning.modules.parts")
    step = own.runner.run("conflict", suite.identity("train"), work, files, source)
    return Found(extra={"conflict": step.result["conflict"]})


KINDS: Mapping[str, Callable[[Context, Cell], Found]] = {
    "heads": heads,
    "models": models,
    "references": references,
    "fusion": fusion,
    "pair": pair,
    "curve_p": curve_p,
    "curve_samples": curve_samples,
    "curve_tasks": curve_tasks,
    "level": level,
    "forgetting": forgetting,
    "trade_off": trade_off,
    "conflict": conflict,
}
"""What each kind of cell does."""


def compute(context: Context, cell: Cell) -> Found:
    """Compute a cell, or read what is there."""
    return KINDS[cell.kind](context, cell)
