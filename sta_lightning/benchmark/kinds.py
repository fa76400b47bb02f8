"""The kinds of cells: which measurements make up each, and what it adds to the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from sta_lightning.arithmetic import rank
from sta_lightning.arithmetic.vectors import sign_conflict
from sta_lightning.benchmark.cells import Cell, Found, windows
from sta_lightning.benchmark.entries import (
    control_wanted,
    entry_key,
    made,
    shown,
    statistics_wanted,
)
from sta_lightning.benchmark.entries import references as references_wanted
from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.models import Measured, Models
from sta_lightning.benchmark.results import (
    PRETRAINED,
    ZERO_SHOT,
    CurvePoint,
    ForgettingResult,
    FusionResult,
    Setting,
    TradeOffPoint,
)
from sta_lightning.benchmark.settings import BenchmarkSettings, Choice, Finetuning, MethodEntry
from sta_lightning.modules.parts import read_encoder
from sta_lightning.tasks.task import Split
from sta_lightning.weights.hashes import sha256


def heads(own: Models) -> Found:
    """The heads of every task and of the control, and the control's Gram matrices if wanted."""
    for name in own.suite.members:
        own.head(name)
    for samples in control_wanted(own.settings):
        own.statistic(own.suite.control, "gram", samples)
    return Found()


def models(own: Models, task: str, finetuning: Finetuning = "plain") -> Found:
    """One task's fine-tuned encoder of one kind, and all that is scored on it."""
    encoder = own.encoder(task, finetuning)
    for what, samples in statistics_wanted(own.settings, finetuning):
        own.statistic(task, what, samples, finetuning)
    name = task if finetuning == "plain" else f"{task} {finetuning}"
    return Found(extra={f"hash/{name}/{own.seed}": sha256(encoder)})


def references(own: Models) -> Found:
    """The pretrained model on every task and the control, each fine-tuned model on its own task."""
    seed, tasks, control = own.seed, own.suite.tasks, own.suite.control
    (zero,) = own.measured("references/zero_shot", [own.zero_shot()], (*tasks, control), "test")
    before = {task: zero.accuracy[task] for task in tasks}
    rows = [FusionResult(ZERO_SHOT, "published", seed, tasks, before)]
    for key, kind in references_wanted(own.settings).items():
        finetuned: dict[str, float] = {}
        for task in tasks:
            (model,) = own.measured(f"references/{key}_{task}", [own.finetuned(task, *kind)], [task], "test")
            finetuned |= model.accuracy
        rows.append(FusionResult(key, "published", seed, tasks, finetuned))
    return Found(
        fusion=tuple(rows),
        forgetting=tuple(
            ForgettingResult(PRETRAINED, "published", seed, task, accuracy, zero.accuracy[control])
            for task, accuracy in before.items()
        ),
        extra={f"counts/{seed}": own.suite.counts()},
    )


def fusion(own: Models, key: str) -> Found:
    """One method on all tasks, as published and, if there is a grid, as tuned on validation."""
    settings, seed, tasks = own.settings, own.seed, own.suite.tasks
    entry, first = settings.methods[key], seed == settings.seeds[0]
    (published,) = own.measured(f"fusion/{key}/published", [own.fused(entry, tasks)], tasks, "test")
    how = shown(entry, {})
    rows = [
        FusionResult(
            *(key, "published", seed, tasks, published.accuracy, how),
            **_beside(published),
        )
    ]
    correct = [published.correct]
    points: list[CurvePoint] = []
    extra: dict[str, Any] = {}
    if first and key == settings.selection:
        # In the order of the tables.
        extra["kept"] = {
            tensor: {task: shares[task] for task in tasks if task in shares}
            for tensor, shares in published.kept.items()
        }
    if entry.tune:
        choices = entry.choices()
        grid = [own.fused(entry.with_choice(choice), tasks) for choice in choices]
        found = own.measured(f"fusion/{key}/grid", grid, tasks, "validation")
        averages = [fmean(each.accuracy.values()) for each in found]
        best = averages.index(max(averages))
        tuned = published
        # The best may be what was published.
        if entry_key(entry.with_choice(choices[best]), seed) != entry_key(entry, seed):
            (tuned,) = own.measured(f"fusion/{key}/tuned", [grid[best]], tasks, "test")
        chosen = shown(entry, choices[best])
        rows.append(
            FusionResult(
                *(key, "tuned", seed, tasks, tuned.accuracy, chosen, averages[best]),
                **_beside(tuned),
            )
        )
        correct.append(tuned.correct)
        if key in settings.curves.scale_methods:
            (name,) = entry.tune
            points += [
                CurvePoint("scale", key, seed, float(choice[name]), average, "validation", each.accuracy)
                for choice, average, each in zip(choices, averages, found, strict=True)
            ]
    return Found(
        fusion=tuple(rows),
        correct={(*row.run, seed): bits for row, bits in zip(rows, correct, strict=True)},
        curves=tuple(points),
        extra=extra,
    )


def _beside(merge: Measured) -> dict[str, Any]:
    """What is told of a merge besides its accuracy."""
    return {"seconds": merge.seconds, "norm": merge.norm, **(merge.foretold or {})}


def pair(own: Models, *tasks: str) -> Found:
    """Two tasks fused, by every method of the figure, as published."""
    rows = []
    for key in own.settings.pairs:
        entry = own.settings.methods[key]
        accuracy = _fused(own, f"pairs/{'+'.join(tasks)}/{key}", entry, tasks)
        rows.append(FusionResult(key, "published", own.seed, tasks, accuracy, shown(entry, {})))
    return Found(pairs=tuple(rows))


def curve_p(own: Models, key: str) -> Found:
    """One masked method at every p."""
    curves, entry = own.settings.curves, own.settings.methods[key]
    points: list[CurvePoint] = []
    stairs: dict[int, float] = {}
    for p in curves.p:
        # Two p of one rank give one mask.
        stair = stairs.setdefault(rank(len(own.suite.tasks), p), p)
        name, chosen = f"curve_p/{key}_{stair:g}", entry.with_choice({"p": stair})
        points.append(_point(own, "p", key, p, name, chosen, curves.p_split))
    return Found(curves=tuple(points))


def curve_samples(own: Models, key: str) -> Found:
    """One method at every number of calibration samples, on test images."""
    points = []
    for samples in own.settings.curves.samples:
        entry = replace(own.settings.methods[key], samples=samples)
        points.append(_point(own, "samples", key, samples, f"curve_samples/{key}_{samples}", entry, "test"))
    return Found(curves=tuple(points))


def curve_tasks(own: Models, key: str, size: str) -> Found:
    """One method on so many tasks, as published, on test images."""
    averages = []
    for tasks in windows(own.suite.tasks, int(size)):
        found = _fused(own, f"curve_tasks/{key}/{'+'.join(tasks)}", own.settings.methods[key], tasks)
        averages.append(fmean(found.values()))
    return Found(curves=(CurvePoint("tasks", key, own.seed, int(size), fmean(averages), "test"),))


def level(own: Models, key: str) -> Found:
    """A method as published, or the pretrained model, on validation images."""
    entry = None if key == ZERO_SHOT else own.settings.methods[key]
    return Found(curves=(_point(own, "level", key, 0.0, f"level/{key}", entry, "validation"),))


def _point(
    own: Models,
    curve: Literal["p", "samples", "level"],
    key: str,
    x: float,
    name: str,
    entry: MethodEntry | None,
    split: Literal["test", "validation"],
) -> CurvePoint:
    found = _fused(own, name, entry, own.suite.tasks, split)
    return CurvePoint(curve, key, own.seed, x, fmean(found.values()), split, found)


def _fused(
    own: Models, name: str, entry: MethodEntry | None, tasks: tuple[str, ...], split: Split = "test"
) -> Mapping[str, float]:
    """Accuracy of a fused model, or the pretrained one (``None``), by task, in percent."""
    candidate = own.zero_shot() if entry is None else own.fused(entry, tasks)
    (model,) = own.measured(name, [candidate], tasks, split)
    return model.accuracy


def forgetting(own: Models, task: str) -> Found:
    """One task forgotten by every method, as published and as the control allows."""
    rows = []
    for key, entry in own.settings.forget_methods.items():
        more = other_fine_tunings(own, task, entry.finetuning) if made(entry, own.seed).many else ()
        chosen: list[tuple[Setting, Choice, bool]] = [("published", {}, True)]
        if entry.tune:
            chosen.append(("tuned", *_most_forgotten(own, key, task, more)))
        for setting, choice, enough in chosen:
            name, what = _row(task, key, setting), shown(entry, choice)
            ((target, control),) = _forgotten(own, name, entry, task, "test", [choice], more)
            rows.append(ForgettingResult(key, setting, own.seed, task, target, control, what, enough))
    return Found(forgetting=tuple(rows))


def other_fine_tunings(own: Models, task: str, finetuning: Finetuning = "plain") -> tuple[Path, ...]:
    """Those of the other seeds but one, so that every seed has a choice of its own."""
    seeds = own.settings.seeds
    before = seeds[seeds.index(own.seed) - 1]
    left_out = {own.seed, before} if len(seeds) > 2 else {own.seed}
    return tuple(own.peers[seed].encoder(task, finetuning) for seed in seeds if seed not in left_out)


def _most_forgotten(own: Models, key: str, task: str, more: tuple[Path, ...]) -> tuple[Choice, bool]:
    """On validation images, the choice that forgets most and keeps enough of the control.

    Where none keeps enough, the one that keeps most; also whether one does.
    """
    control, entry = own.suite.control, own.settings.forget_methods[key]
    (before,) = own.measured(f"forget/{task}/before", [own.zero_shot()], [task, control], "validation")
    least = own.settings.control_share * before.accuracy[control]
    choices = entry.choices()
    found = _forgotten(own, f"forget/{task}/{key}/grid", entry, task, "validation", choices, more)
    enough = [number for number, (_, kept) in enumerate(found) if kept >= least]
    if not enough:
        return choices[max(range(len(choices)), key=lambda number: (found[number][1], -number))], False
    best = min(enough, key=lambda number: (found[number][0], -found[number][1], number))
    return choices[best], True


def trade_off(own: Models, task: str) -> Found:
    """One task forgotten at every value of p or γ, on test images.

    That of the method's row in the table is read from there.
    """
    points: list[TradeOffPoint] = []
    for key, varied in own.settings.trade_off.methods.items():
        entry = own.settings.forget_methods[key]
        ((name, values),) = varied.items()
        new: list[Choice] = [{name: value} for value in values if not entry.says({name: value})]
        found = iter(_forgotten(own, f"trade_off/{task}/{key}", entry, task, "test", new) if new else [])
        for value in values:
            if entry.says({name: value}):
                (both,) = _forgotten(own, _row(task, key, "published"), entry, task, "test", [{}])
            else:
                both = next(found)
            points.append(TradeOffPoint(key, own.seed, float(value), *both))
    return Found(trade_off=tuple(points))


def _row(task: str, key: str, setting: Setting) -> str:
    """The step of a row of the table of forgetting."""
    return f"forget/{task}/{key}/{setting}"


def _forgotten(
    own: Models,
    name: str,
    entry: MethodEntry,
    task: str,
    split: Split,
    choices: list[Choice],
    more: tuple[Path, ...] = (),
) -> list[tuple[float, float]]:
    """Accuracy of target and control for every choice, in percent."""
    candidates = [own.amnesic(entry.with_choice(choice), task, more) for choice in choices]
    found = own.measured(name, candidates, [task, own.suite.control], split)
    return [(each.accuracy[task], each.accuracy[own.suite.control]) for each in found]


def conflict(own: Models) -> Found:
    """Sign conflict between the task vectors."""
    encoders = {task: own.encoder(task) for task in own.suite.tasks}

    def work(folder: Path) -> dict[str, Any]:
        reference = own.pretrained_weights
        finetuned = {task: read_encoder(path, reference, f"task {task!r}") for task, path in encoders.items()}
        return {"conflict": sign_conflict(reference, finetuned)}

    files = {**own.suite.files(), **{f"finetuned/{task}": path for task, path in encoders.items()}}
    source = ("sta_lightning.arithmetic.vectors", "sta_lightning.modules.parts")
    step = own.runner.run("conflict", own.suite.identity("train"), work, files, source)
    return Found(extra={"conflict": step.result["conflict"]})


_EVERY: tuple[Callable[..., Found], ...] = (
    *(heads, models, references, fusion, pair, curve_p, curve_samples, curve_tasks, level),
    *(forgetting, trade_off, conflict),
)
KINDS: Mapping[str, Callable[..., Found]] = {function.__name__: function for function in _EVERY}
"""What each kind of cell does with a seed's models and the names of the cell."""


def every_seed(settings: BenchmarkSettings, *, compute: bool = True) -> dict[int, Models]:
    """The models of every seed, as one process sees them.

    Without ``compute`` what is not done raises
    :class:`~sta_lightning.benchmark.steps.UnfinishedError`.
    """
    suite = Suite(settings.models)
    seeds: dict[int, Models] = {}
    for seed in settings.seeds:
        seeds[seed] = Models(settings, suite, seed, seeds, compute=compute)
    return seeds


def compute(seeds: Mapping[int, Models], cell: Cell) -> Found:
    """Compute a cell, or read what is there."""
    return KINDS[cell.kind](seeds[cell.seed], *cell.names)
