"""The kinds of cells: which measurements make up each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from sta_lightning.arithmetic import rank
from sta_lightning.arithmetic.conflict import sign_conflict
from sta_lightning.benchmark.cells import Cell, Found, windows
from sta_lightning.benchmark.context import Context, SeedContext
from sta_lightning.benchmark.entries import Choice, MethodEntry
from sta_lightning.benchmark.measured import accuracies, forgotten, fused, tuned
from sta_lightning.benchmark.results import (
    CurvePoint,
    ForgettingResult,
    FusionResult,
    Setting,
    TradeOffPoint,
)
from sta_lightning.benchmark.settings import statistics_wanted
from sta_lightning.modules.parts import read_encoder

PRETRAINED = "pretrained"
ZERO_SHOT = "zero_shot"
FINE_TUNED = "fine_tuned"
CONFLICT_SOURCE = ("sta_lightning.arithmetic.conflict", "sta_lightning.modules.parts")


def heads(context: Context, cell: Cell) -> Found:
    """The heads of every task and of the control."""
    one = context.seed(cell.seed)
    one.models.make_heads()
    return Found()


def models(context: Context, cell: Cell) -> Found:
    """One task's fine-tuned encoder, and all that is scored on it."""
    one = context.seed(cell.seed)
    (task,) = cell.names
    encoder = one.encoder(task)
    for what, samples in statistics_wanted(one.settings):
        one.statistic(task, what, samples)
    return Found(extra=((f"hash/{task}/{cell.seed}", one.runner.digest(encoder)),))


def references(context: Context, cell: Cell) -> Found:
    """The pretrained model on every task and the control, and each fine-tuned model on its own task."""
    one = context.seed(cell.seed)
    suite = one.suite

    def zero_shot() -> dict[str, Any]:
        return one.evaluate({PRETRAINED: one.pretrained_weights}, one.tasks, "test", control=True)[PRETRAINED]

    found = accuracies(one, "references/zero_shot", {}, zero_shot, "test", one.tasks, control=True)
    control = found[suite.control]
    own: dict[str, float] = {}
    for task in one.tasks:

        def work(task: str = task) -> dict[str, Any]:
            return one.evaluate({task: str(one.encoder(task))}, [task], "test")[task]

        files = {f"finetuned/{task}": one.encoder(task)}
        own |= accuracies(one, f"references/fine_tuned_{task}", {}, work, "test", (task,), files=files)
    accuracy = {task: found[task] for task in one.tasks}
    return Found(
        fusion=(
            FusionResult(ZERO_SHOT, "published", one.seed, one.tasks, accuracy),
            FusionResult(FINE_TUNED, "published", one.seed, one.tasks, own),
        ),
        forgetting=tuple(
            ForgettingResult(PRETRAINED, "published", one.seed, task, accuracy[task], control)
            for task in one.tasks
        ),
        extra=((f"counts/{one.seed}", _counts(one)),),
    )


def _counts(one: SeedContext) -> dict[str, dict[str, int]]:
    """Split -> set -> number of images."""
    counts: dict[str, dict[str, int]] = {
        "test": one.images(one.tasks, "test", control=True).counts,
        "validation": one.images(one.tasks, "validation").counts,
    }
    counts["train"] = {task: len(one.suite.datamodule(task).dataset("train")) for task in one.tasks}
    return counts


def fusion(context: Context, cell: Cell) -> Found:
    """One method on all tasks: tuned on validation images if there is a grid, tested as published and as tuned."""
    one = context.seed(cell.seed)
    (key,) = cell.names
    entry = one.settings.methods[key]
    rows: list[FusionResult] = []
    points: list[CurvePoint] = []
    published = fused(one, f"fusion/{key}/published", entry, one.tasks)
    rows.append(FusionResult(key, "published", one.seed, one.tasks, published["accuracy"], entry.shown({})))
    extra: list[tuple[str, Any]] = []
    if key == one.settings.selection and one.seed == one.settings.seeds[0]:
        extra.append(("kept", published["kept"]))
    if entry.tune:
        grid = tuned(one, f"fusion/{key}/grid", entry, one.tasks)
        best = max(range(len(grid)), key=lambda number: (grid[number][1], -number))
        choice, validation = grid[best]
        chosen = entry.with_choice(choice)
        # The best may be what was published.
        same = chosen.key(one.seed) == entry.key(one.seed)
        result = published if same else fused(one, f"fusion/{key}/tuned", chosen, one.tasks)
        rows.append(
            FusionResult(
                key, "tuned", one.seed, one.tasks, result["accuracy"], entry.shown(choice), validation
            )
        )
        if key in one.settings.curves.scale_methods:
            (name,) = entry.tune
            points += [
                CurvePoint("scale", key, one.seed, float(choice[name]), average, "validation")
                for choice, average in grid
            ]
    return Found(fusion=tuple(rows), curves=tuple(points), extra=tuple(extra))


def pair(context: Context, cell: Cell) -> Found:
    """Two tasks fused, by every method of the figure, as published."""
    one = context.seed(cell.seed)
    name = "+".join(cell.names)
    rows = []
    for key in one.settings.pairs:
        entry = one.settings.methods[key]
        found = fused(one, f"pairs/{name}/{key}", entry, cell.names)
        rows.append(FusionResult(key, "published", one.seed, cell.names, found["accuracy"], entry.shown({})))
    return Found(pairs=tuple(rows))


def curve_p(context: Context, cell: Cell) -> Found:
    """One masked method at every p, on test images."""
    one = context.seed(cell.seed)
    (key,) = cell.names
    entry = one.settings.methods[key]
    points: list[CurvePoint] = []
    stairs: dict[int, float] = {}
    for p in one.settings.curves.p:
        # Two p of one rank give one mask.
        stair = stairs.setdefault(rank(len(one.tasks), p), p)
        found = fused(one, f"curve_p/{key}_{stair:g}", entry.with_choice({"p": stair}), one.tasks)
        points.append(CurvePoint("p", key, one.seed, p, fmean(found["accuracy"].values()), "test"))
    return Found(curves=tuple(points))


def curve_samples(context: Context, cell: Cell) -> Found:
    """One method at every number of calibration samples, on test images."""
    one = context.seed(cell.seed)
    (key,) = cell.names
    entry = one.settings.methods[key]
    points = []
    for samples in one.settings.curves.samples:
        given = replace(entry, samples=samples)
        found = fused(one, f"curve_samples/{key}_{samples}", given, one.tasks)
        average = fmean(found["accuracy"].values())
        points.append(CurvePoint("samples", key, one.seed, samples, average, "test"))
    return Found(curves=tuple(points))


def curve_tasks(context: Context, cell: Cell) -> Found:
    """One method on so many tasks, as published, on test images."""
    one = context.seed(cell.seed)
    key, size = cell.names
    entry = one.settings.methods[key]
    averages = []
    for tasks in windows(one.tasks, int(size)):
        found = fused(one, f"curve_tasks/{key}/{'+'.join(tasks)}", entry, tasks)
        averages.append(fmean(found["accuracy"].values()))
    return Found(curves=(CurvePoint("tasks", key, one.seed, int(size), fmean(averages), "test"),))


def forgetting(context: Context, cell: Cell) -> Found:
    """One task forgotten by every method, as published and with the settings that the control's validation images allow."""
    one = context.seed(cell.seed)
    (task,) = cell.names
    rows = []
    for key, entry in one.settings.forget_methods.items():
        many = entry.make(cell.seed, forgetting=True).many
        more = _other_fine_tunings(context, cell.seed, task) if many else ()
        found = forgotten(one, f"forget/{task}/{key}/published", entry, task, "test", [{}], more)[0]
        rows.append(_forgetting_row(one, key, "published", task, found, entry, {}))
        if entry.tune:
            choice, enough = _most_forgotten(one, key, entry, task, more)
            chosen = entry.with_choice(choice)
            found = forgotten(one, f"forget/{task}/{key}/tuned", chosen, task, "test", [{}], more)[0]
            row = _forgetting_row(one, key, "tuned", task, found, entry, choice)
            rows.append(replace(row, enough=enough))
    return Found(forgetting=tuple(rows))


def _forgetting_row(
    one: SeedContext,
    key: str,
    setting: Setting,
    task: str,
    found: Mapping[str, float],
    entry: MethodEntry,
    choice: Choice,
) -> ForgettingResult:
    shown = entry.shown(choice, forgetting=True)
    return ForgettingResult(key, setting, one.seed, task, found[task], found[one.suite.control], shown)


def _other_fine_tunings(context: Context, seed: int, task: str) -> tuple[Path, ...]:
    """Those of the other seeds but one, which differs from seed to seed: with all of them every seed would have one result."""
    seeds = context.settings.seeds
    before = seeds[seeds.index(seed) - 1]
    left_out = {seed, before} if len(seeds) > 2 else {seed}
    return tuple(context.seed(other).encoder(task) for other in seeds if other not in left_out)


def _most_forgotten(
    one: SeedContext, key: str, entry: MethodEntry, task: str, more: tuple[Path, ...]
) -> tuple[Choice, bool]:
    """The choice that forgets most among those that keep enough of the control, on validation images.

    Where none keeps enough, the one that keeps most; also whether one does.
    """
    control = one.suite.control
    choices = entry.choices()
    before = forgotten(one, f"forget/{task}/before", None, task, "validation", [{}], ())[0][control]
    found = forgotten(one, f"forget/{task}/{key}/grid", entry, task, "validation", choices, more)
    share = one.settings.control_share
    kept = [number for number, row in enumerate(found) if row[control] >= share * before]
    if not kept:
        return choices[max(range(len(choices)), key=lambda number: (found[number][control], -number))], False
    best = min(kept, key=lambda number: (found[number][task], -found[number][control], number))
    return choices[best], True


def trade_off(context: Context, cell: Cell) -> Found:
    """One task forgotten at every value of p or γ, on test images."""
    one = context.seed(cell.seed)
    (task,) = cell.names
    points: list[tuple[str, TradeOffPoint]] = []
    for key, varied in one.settings.trade_off.methods.items():
        entry = one.settings.forget_methods[key]
        ((name, values),) = varied.items()
        choices: list[Choice] = [{name: value} for value in values]
        found = forgotten(one, f"trade_off/{task}/{key}", entry, task, "test", choices, ())
        points += [
            (task, TradeOffPoint(key, one.seed, float(value), row[task], row[one.suite.control]))
            for value, row in zip(values, found, strict=True)
        ]
    return Found(trade_off=tuple(points))


def conflict(context: Context, cell: Cell) -> Found:
    """Sign conflict between the task vectors."""
    one = context.seed(cell.seed)
    encoders = {task: one.encoder(task) for task in one.tasks}

    def work(folder: Path) -> dict[str, Any]:
        reference = one.pretrained_weights
        finetuned = {task: read_encoder(path, reference, f"task {task!r}") for task, path in encoders.items()}
        return {"conflict": sign_conflict(reference, finetuned)}

    files = {**one.suite.files(), **{f"finetuned/{task}": path for task, path in encoders.items()}}
    step = one.runner.run("conflict", one.suite.identity("train"), work, files, CONFLICT_SOURCE)
    return Found(extra=(("conflict", step.result["conflict"]),))


KINDS: Mapping[str, Callable[[Context, Cell], Found]] = {
    "heads": heads,
    "models": models,
    "references": references,
    "fusion": fusion,
    "pair": pair,
    "curve_p": curve_p,
    "curve_samples": curve_samples,
    "curve_tasks": curve_tasks,
    "forgetting": forgetting,
    "trade_off": trade_off,
    "conflict": conflict,
}
"""What each kind of cell does."""


def compute(context: Context, cell: Cell) -> Found:
    """Compute a cell, or read what is there."""
    return KINDS[cell.kind](context, cell)
