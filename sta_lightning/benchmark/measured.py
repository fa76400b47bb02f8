"""What the cells measure, in the steps in which it is kept: each is keyed by all that its result depends on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sta_lightning.benchmark.context import TOGETHER, SeedContext, state_of
from sta_lightning.benchmark.entries import Choice, MethodEntry
from sta_lightning.benchmark.learning import adamerged
from sta_lightning.experiment.steps import Step
from sta_lightning.modules.several import Weights
from sta_lightning.tasks.task import Split

EVALUATION_SOURCE = (
    "sta_lightning.modules.several",
    "sta_lightning.engine.job",
    "sta_lightning.experiment.images",
)


def fused(one: SeedContext, name: str, entry: MethodEntry, tasks: tuple[str, ...]) -> dict[str, Any]:
    """A fused model on its tasks' test images: ``accuracy`` and ``kept``; one step."""

    def work(folder: Path) -> dict[str, Any]:
        kept: Mapping[str, Any] = {}
        if entry.learned:
            weights = adamerged(one, entry, tasks)
        else:
            merged = one.fuse(entry, tasks)
            weights, kept = state_of(merged), merged.kept
        accuracy = one.evaluate({"fused": weights}, tasks, "test")["fused"]
        return {"accuracy": accuracy, "kept": kept, "outcome": _average(accuracy)}

    return _step(one, name, entry.key(one.seed), work, "test", tasks, [entry.with_choice({})]).result


def tuned(
    one: SeedContext, name: str, entry: MethodEntry, tasks: tuple[str, ...]
) -> list[tuple[Choice, float]]:
    """Average validation accuracy of every choice of the grid; one step."""
    choices = entry.choices()

    def work(folder: Path) -> dict[str, Any]:
        averages: list[float] = []
        for first in range(0, len(choices), TOGETHER):
            models: dict[str, Weights] = {
                str(number): state_of(one.fuse(entry.with_choice(choices[number]), tasks))
                for number in range(first, min(first + TOGETHER, len(choices)))
            }
            found = one.evaluate(models, tasks, "validation")
            averages += [fmean(found[number].values()) for number in models]
        return {"averages": averages, "outcome": f"{max(averages):.1f}% on validation"}

    entries = [entry.with_choice(choice) for choice in choices]
    key = {"choices": [each.key(one.seed) for each in entries]}
    averages = _step(one, name, key, work, "validation", tasks, entries).result["averages"]
    return list(zip(choices, averages, strict=True))


def forgotten(
    one: SeedContext,
    name: str,
    entry: MethodEntry | None,
    task: str,
    split: Split,
    choices: list[Choice],
    more: tuple[Path, ...],
) -> list[dict[str, float]]:
    """Accuracy of target and control for every choice; no entry is the pretrained model; one step."""
    control = one.suite.control
    chosen = [None if entry is None else entry.with_choice(choice) for choice in choices]

    def work(folder: Path) -> dict[str, Any]:
        rows: list[dict[str, float]] = []
        for first in range(0, len(chosen), TOGETHER):
            models: dict[str, Weights] = {
                str(number): one.pretrained_weights
                if each is None
                else state_of(one.forget(each, task, more))
                for number, each in enumerate(chosen[first : first + TOGETHER], first)
            }
            found = one.evaluate(models, [task], split, control=True)
            rows += [found[number] for number in models]
        last = rows[-1]
        return {"rows": rows, "outcome": f"target {last[task]:.1f}%, control {last[control]:.1f}%"}

    entries = [each for each in chosen if each is not None]
    key = {"choices": [each.key(one.seed, forgetting=True) for each in entries]}
    files = {f"more/{number}": path for number, path in enumerate(more)}
    step = _step(one, name, key, work, split, (task,), entries, control=True, forgetting=True, files=files)
    return list(step.result["rows"])


def accuracies(
    one: SeedContext,
    name: str,
    key: Mapping[str, Any],
    evaluate: Callable[[], dict[str, float]],
    split: Split,
    tasks: tuple[str, ...],
    *,
    control: bool = False,
    files: Mapping[str, Path] | None = None,
) -> dict[str, float]:
    """What an evaluation gives, by set in percent; one step."""

    def work(folder: Path) -> dict[str, Any]:
        accuracy = evaluate()
        return {"accuracy": accuracy, "outcome": _average(accuracy)}

    found = _step(one, name, key, work, split, tasks, control=control, files=files).result["accuracy"]
    return dict(found)


def _step(
    one: SeedContext,
    name: str,
    key: Mapping[str, Any],
    work: Callable[[Path], dict[str, Any]],
    split: Split,
    tasks: tuple[str, ...],
    entries: Sequence[MethodEntry] = (),
    *,
    control: bool = False,
    forgetting: bool = False,
    files: Mapping[str, Path] | None = None,
) -> Step:
    """A step whose key holds everything that an evaluation depends on."""
    sets = (*tasks, *([one.suite.control] if control else []))
    more = (one.suite.control,) if control else ()
    inputs = {f"head/{task}": one.head(task) for task in sets} | one.suite.files(*sets)
    for variant in entries:
        sources = one.sources(variant, tasks, forgetting=forgetting)
        found = one.inputs(sources, *more) | variant.files(forgetting=forgetting)
        what = variant.statistic(forgetting=forgetting)
        # Choices may go by different measures.
        inputs |= {
            f"{name}/{what}" if name.startswith("importance/") else name: path for name, path in found.items()
        }
    # JSON knows no tuples: what is compared later is what was written.
    settings = json.loads(json.dumps({**one.suite.identity(split, *sets), **key}))
    source = {*EVALUATION_SOURCE, *(m for each in entries for m in each.source(forgetting=forgetting))}
    return one.runner.run(name, settings, work, {**inputs, **(files or {})}, source)


def _average(accuracy: Mapping[str, float]) -> str:
    return f"{fmean(accuracy.values()):.1f}%"
