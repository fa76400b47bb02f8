"""A benchmark's numbers as the report reads them: by method and seed, and who beats whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from sta_lightning.benchmark.report.verdict import Verdict
from sta_lightning.benchmark.results import BenchmarkResults, Group, MethodInfo, Run, Setting
from sta_lightning.report.grid import Number

Measure = Literal["fusion", "target", "control"]
"""Average accuracy after fusion, or accuracy on the target or the control after forgetting."""

SIDES: tuple[Measure, Measure] = ("target", "control")
SETTINGS: tuple[Setting, ...] = ("published", "tuned")


@dataclass(frozen=True)
class Duel:
    """A variant of STA held against another method."""

    own: Run
    other: Run
    verdict: Verdict


@dataclass(frozen=True)
class Scores:
    """One measured number of every method.

    Attributes:
        infos: key -> method, in the order of the tables.
        values: run -> seed -> accuracy in percent, in the same order.
    """

    infos: Mapping[str, MethodInfo]
    values: Mapping[Run, Mapping[int, float]]

    @classmethod
    def of(cls, methods: Sequence[MethodInfo], rows: Iterable[tuple[Run, int, float]]) -> Scores:
        """From (run, seed, accuracy); the mean where a run and a seed have several."""
        found: dict[Run, dict[int, list[float]]] = {}
        for run, seed, value in rows:
            found.setdefault(run, {}).setdefault(seed, []).append(value)
        order: list[Run] = [(info.key, setting) for info in methods for setting in SETTINGS]
        means = {
            run: {seed: fmean(values) for seed, values in sorted(found[run].items())}
            for run in order
            if run in found
        }
        return cls({info.key: info for info in methods}, means)

    def runs(self, *groups: Group) -> list[Run]:
        """The runs of these groups; without any, those that are no reference."""
        every = ("sta", "data-free", "data", "control")
        return [run for run in self.values if self.group(run) in (groups or every)]

    def ranked(self, *, low: bool = False) -> list[Run]:
        """The runs that are no reference, the best first; ``low``: the lower the better."""
        return sorted(self.runs(), key=self.mean, reverse=not low)

    def group(self, run: Run) -> Group:
        """Which kind of method it is."""
        return self.infos[run[0]].group

    def settings(self, key: str) -> list[Setting]:
        """Under which settings a method was run, published first."""
        return [setting for setting in SETTINGS if (key, setting) in self.values]

    def tag(self, run: Run) -> str:
        """The setting, where there is something to tell apart."""
        return run[1] if len(self.settings(run[0])) > 1 or run[1] == "tuned" else ""

    def named(self, run: Run) -> str:
        """The method, with its setting where there is something to tell apart."""
        label, tag = self.infos[run[0]].label, self.tag(run)
        return f"{label} ({tag})" if tag else label

    def spread(self, run: Run, paper: float | None = None) -> Number | None:
        """Mean and spread over the seeds beside the paper's number; ``None`` if not measured."""
        found = list(self.values.get(run, {}).values())
        return Number.of(found, paper) if found else None

    def mean(self, run: Run) -> float:
        """Mean over the seeds."""
        return fmean(self.values[run].values())

    def best(self, runs: Iterable[Run]) -> Run:
        """The first with the highest mean."""
        return max(runs, key=self.mean)


def scores(results: BenchmarkResults, measure: Measure = "fusion", task: str | None = None) -> Scores:
    """Every method's accuracy in one measure, on one task or on average over the tasks."""
    if measure == "fusion":
        fused = [row for row in results.fusion if task is None or task in row.accuracy]
        values = ((row, row.average if task is None else row.accuracy[task]) for row in fused)
        return Scores.of(results.methods, ((row.run, row.seed, value) for row, value in values))
    rows = [row for row in results.forgetting if task in (None, row.task)]
    return Scores.of(results.forget_methods, ((row.run, row.seed, getattr(row, measure)) for row in rows))


def pair_scores(results: BenchmarkResults, pair: tuple[str, ...] | None = None) -> Scores:
    """Every method's average on one pair of tasks, or the mean over the pairs."""
    rows = [row for row in results.pairs if pair in (None, row.tasks)]
    return Scores.of(results.methods, ((row.run, row.seed, row.average) for row in rows))


def kept_accuracy(results: BenchmarkResults) -> Scores:
    """Share of the fine-tuned models' accuracy that a run reaches, in percent, mean over the tasks.

    The models that the run worked on, evaluated as it was. Without values where they were not
    measured.
    """
    bounds = {(row.method, row.seed): row.accuracy for row in results.fusion}
    references = {info.key: info.reference for info in results.methods}
    shares = []
    for row in results.fusion:
        bound = bounds.get((references[row.method], row.seed), {})
        if all(bound.get(task) for task in row.accuracy):
            share = 100 * fmean(value / bound[task] for task, value in row.accuracy.items())
            shares.append((row.run, row.seed, share))
    return Scores.of(results.methods, shares)


def duels(results: BenchmarkResults, measure: Measure = "fusion") -> list[Duel]:
    """Every variant of STA against every other method, on average over the tasks."""
    found = scores(results, measure)
    image_errors = {
        (row.run, (row.other, row.other_setting)): row.error
        for row in results.paired
        if measure == "fusion" and len(results.seeds) == 1
    }
    met = []
    for own in found.runs("sta"):
        for other in found.runs():
            values = found.values[other]
            differences = [
                value - values[seed] for seed, value in found.values[own].items() if seed in values
            ]
            if own[0] != other[0] and differences:
                verdict = Verdict(differences, measure == "target", image_errors.get((own, other)))
                met.append(Duel(own, other, verdict))
    return met


def spaced(name: str) -> str:
    """A task's name as it reads."""
    return name.replace("_", " ")


def settings_text(chosen: list[Mapping[str, Any]], *, scale: str = "λ") -> str:
    """The settings of every seed, ``λ = 0.3; p = 0.7``; ``scale`` names the coefficient."""
    parts = []
    for name in dict.fromkeys(name for settings in chosen for name in settings):
        values = [plain(settings.get(name)) for settings in chosen]
        shown = values[0] if len(set(values)) == 1 else ", ".join(values) + " (by seed)"
        parts.append(f"{scale if name == 'scale' else name} = {shown}")
    return "; ".join(parts)


def plain(value: Any) -> str:
    """A setting's value as it reads."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    return "–" if value is None else str(value)


def looks(results: BenchmarkResults) -> dict[str, int]:
    """Method -> number of its colour and marker, the same in every figure.

    STA's variants come first, then whatever is drawn somewhere.
    """
    drawn = {row.method for rows in (results.pairs, results.curves, results.trade_off) for row in rows}
    groups = {info.key: info.group for info in (*results.methods, *results.forget_methods)}
    keys = [key for key, group in groups.items() if group != "reference"]
    order = sorted(keys, key=lambda key: 0 if key in drawn and groups[key] == "sta" else 2 - (key in drawn))
    return {key: place for place, key in enumerate(order)}


def looks_among(results: BenchmarkResults, keys: Iterable[str], colours: int) -> dict[str, int]:
    """The same for one figure, where no two methods share a colour as long as one is free."""
    everywhere = looks(results)
    taken: dict[str, int] = {}
    for key in dict.fromkeys(keys):
        place = everywhere[key]
        used = {other % colours for other in taken.values()}
        if place % colours in used:
            place = next((free for free in range(colours) if free not in used), place)
        taken[key] = place
    return taken
