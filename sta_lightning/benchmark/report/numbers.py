"""What the report says of a benchmark's numbers: names, averages by seed, and who beats whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from sta_lightning.benchmark.report.verdict import Verdict
from sta_lightning.benchmark.results import BenchmarkResults, MethodInfo, Setting, Spread

Side = Literal["target", "control"]
Run = tuple[str, Setting]
"""A method under a setting."""

SETTINGS: tuple[Setting, ...] = ("published", "tuned")
_FINE_TUNED = ("fine_tuned", "finetuned")
_ZERO_SHOT = ("zero_shot", "zeroshot", "pretrained")


@dataclass(frozen=True)
class Duel:
    """One method held against another.

    Attributes:
        own: a variant of STA.
        other: any other method.
        verdict: what the differences say.
    """

    own: Run
    other: Run
    verdict: Verdict


def label(results: BenchmarkResults, key: str, *, forgetting: bool = False) -> str:
    """What the reader sees; the key itself if no method has it."""
    tables = (
        (results.forget_methods, results.methods) if forgetting else (results.methods, results.forget_methods)
    )
    return next((info.label for table in tables for info in table if info.key == key), key)


def named(results: BenchmarkResults, run: Run, *, forgetting: bool = False) -> str:
    """A method with its setting, where it was run under more than one or was tuned."""
    tag = tagged(results, run, forgetting=forgetting)
    name = label(results, run[0], forgetting=forgetting)
    return f"{name} ({tag})" if tag else name


def tagged(results: BenchmarkResults, run: Run, *, forgetting: bool = False) -> str:
    """The setting, where there is something to tell apart."""
    key, setting = run
    known = forget_settings(results, key) if forgetting else results.settings_of(key)
    return setting if len(known) > 1 or setting == "tuned" else ""


def references(results: BenchmarkResults) -> tuple[str | None, str | None]:
    """Keys of the zero-shot and of the fine-tuned models, as far as they were measured."""
    measured = {row.method for row in results.fusion}
    zero = next((key for key in _ZERO_SHOT if key in measured), None)
    fine = next((key for key in _FINE_TUNED if key in measured), None)
    return zero, fine


def runs(results: BenchmarkResults) -> list[tuple[MethodInfo, Setting]]:
    """Every method and setting of the fusion, in the order of the table."""
    return [(info, setting) for info in results.methods for setting in results.settings_of(info.key)]


def averages(results: BenchmarkResults, run: Run) -> dict[int, float]:
    """Seed -> average over the tasks after fusion."""
    return {row.seed: row.average for row in results.fused(*run)}


def kept_accuracy(results: BenchmarkResults, run: Run) -> Spread | None:
    """Mean over the tasks of the share of the fine-tuned model's accuracy that is reached, in percent."""
    fine = references(results)[1]
    if fine is None:
        return None
    bounds = {row.seed: row.accuracy for row in results.fused(fine, results.settings_of(fine)[0])}
    shares = [
        100 * fmean(value / bounds[row.seed][task] for task, value in row.accuracy.items())
        for row in results.fused(*run)
        if row.seed in bounds and all(bounds[row.seed].get(task) for task in row.accuracy)
    ]
    return Spread.of(shares) if shares else None


def forget_settings(results: BenchmarkResults, key: str) -> tuple[Setting, ...]:
    """Under which settings a forgetting method was run, published first."""
    found = {row.setting for row in results.forgetting if row.method == key}
    return tuple(setting for setting in SETTINGS if setting in found)


def forget_runs(results: BenchmarkResults) -> list[tuple[MethodInfo, Setting]]:
    """Every method and setting of the forgetting, in the order of the table."""
    return [
        (info, setting) for info in results.forget_methods for setting in forget_settings(results, info.key)
    ]


def forgotten(results: BenchmarkResults, run: Run, side: Side, task: str | None = None) -> dict[int, float]:
    """Seed -> accuracy after forgetting one task, or the mean over all of them."""
    found: dict[int, list[float]] = {}
    for row in results.forgetting:
        if (row.method, row.setting) == run and task in (None, row.task):
            found.setdefault(row.seed, []).append(getattr(row, side))
    return {seed: fmean(values) for seed, values in sorted(found.items())}


def spread(by_seed: Mapping[int, float]) -> Spread | None:
    """Mean and spread over the seeds; nothing of nothing."""
    return Spread.of(list(by_seed.values())) if by_seed else None


def duels(results: BenchmarkResults) -> list[Duel]:
    """Every variant of STA against every other merge, on the average after fusion."""
    merges = [(info.key, setting) for info, setting in runs(results) if info.group != "reference"]
    own = [run for run in merges if results.method(run[0]).group == "sta"]
    values = {run: averages(results, run) for run in merges}
    return _pair_up(own, merges, values)


def forget_duels(results: BenchmarkResults, side: Side) -> list[Duel]:
    """Every variant of STA against every other method, on the mean after forgetting."""
    methods = [(info, setting) for info, setting in forget_runs(results) if info.group != "reference"]
    merges: list[Run] = [(info.key, setting) for info, setting in methods]
    own: list[Run] = [(info.key, setting) for info, setting in methods if info.group == "sta"]
    values = {run: forgotten(results, run, side) for run in merges}
    return _pair_up(own, merges, values, lower_is_better=side == "target")


def _pair_up(
    own: list[Run],
    merges: list[Run],
    values: Mapping[Run, dict[int, float]],
    *,
    lower_is_better: bool = False,
) -> list[Duel]:
    found = []
    for first in own:
        for second in merges:
            if first[0] == second[0]:
                continue
            both = [
                value - values[second][seed]
                for seed, value in values[first].items()
                if seed in values[second]
            ]
            if both:
                found.append(Duel(first, second, Verdict.of(both, lower_is_better=lower_is_better)))
    return found


def settings_text(chosen: list[Mapping[str, Any]], *, scale: str = "λ") -> str:
    """Settings as they read in a table: ``λ = 0.3; p = 0.7``; by seed where the seeds differ.

    Args:
        chosen: the settings of every seed.
        scale: what the coefficient is called.
    """
    parts = []
    for name in dict.fromkeys(name for one in chosen for name in one):
        values = [_plain(one.get(name)) for one in chosen]
        shown = values[0] if len(set(values)) == 1 else ", ".join(values) + " (by seed)"
        parts.append(f"{scale if name == 'scale' else name} = {shown}")
    return "; ".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(inner) for inner in value)
    return "–" if value is None else str(value)


def plain(value: Any) -> str:
    """A setting's value as it reads."""
    return _plain(value)


def looks(results: BenchmarkResults) -> dict[str, int]:
    """Method -> number of its colour and marker, the same in every figure; STA's variants first."""
    drawn = {row.method for rows in (results.pairs, results.curves, results.trade_off) for row in rows}
    known = list(dict.fromkeys(info.key for info in (*results.methods, *results.forget_methods)))
    own = [info.key for info in (*results.methods, *results.forget_methods) if info.group == "sta"]
    reference = {
        info.key for info in (*results.methods, *results.forget_methods) if info.group == "reference"
    }
    order = [
        *(key for key in own if key in drawn),
        *(key for key in known if key in drawn),
        *sorted(drawn - set(known)),
        *known,
    ]
    return {key: place for place, key in enumerate(k for k in dict.fromkeys(order) if k not in reference)}


def looks_among(results: BenchmarkResults, keys: Iterable[str], colours: int) -> dict[str, int]:
    """The same for one figure: of two methods that would share a colour in it, the later one gets a free one."""
    everywhere = looks(results)
    taken: dict[str, int] = {}
    for key in dict.fromkeys(keys):
        place = everywhere.get(key, len(everywhere))
        used = {other % colours for other in taken.values()}
        if place % colours in used:
            place = next((free for free in range(colours) if free not in used), place)
        taken[key] = place
    return taken
