"""The figures of a benchmark's report, in a theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.figure import Figure

from sta_lightning.benchmark.report.curves import by_value, curve_groups, symbol
from sta_lightning.benchmark.report.numbers import (
    Run,
    averages,
    forget_settings,
    forgotten,
    label,
    looks_among,
    named,
    references,
    runs,
    spread,
)
from sta_lightning.benchmark.report.tables import kept_share, pair_name, pair_runs
from sta_lightning.benchmark.results import BenchmarkResults, CurvePoint, MethodInfo, Spread
from sta_lightning.report.dots import Dots, Panel, dot_figure
from sta_lightning.report.heat import heat_figure
from sta_lightning.report.lines import Band, Path, Point, Station, band_figure, path_figure
from sta_lightning.report.radar import radar_figure
from sta_lightning.report.selection import Selection, selection_figure
from sta_lightning.report.theme import LIGHT, Theme

X_LABELS = {
    "p": "p: quantile below which entries are dropped (no unit)",
    "scale": "λ: coefficient of the task vectors (no unit)",
    "samples": "calibration samples per task (log scale)",
    "tasks": "number of tasks fused",
}
CURVE_TITLES = {
    "p": "Accuracy against p",
    "scale": "Accuracy against λ",
    "samples": "Accuracy against calibration samples",
    "tasks": "Accuracy against the number of tasks",
}


def all_figures(results: BenchmarkResults, theme: Theme = LIGHT) -> dict[str, Figure]:
    """Every figure that there is data for, by name, in the order of the report."""
    found: dict[str, Figure] = {}
    if results.fusion:
        found["fusion"] = ranking(results, theme)
        if len(results.tasks) > 2:
            found["radar"] = radar(results, theme)
    if results.pairs:
        found["pairs"] = pairs(results, theme)
    if results.forgetting:
        found["forgetting"] = forgetting(results, theme)
    if results.trade_off:
        found["trade_off"] = trade_off(results, theme)
    for name, points in curve_groups(results).items():
        found[name] = curve(results, points, theme)
    if results.kept:
        found["selection"] = selection(results, theme)
        found["kept"] = kept(results, theme)
    if len(results.conflict) > 1:
        found["conflict"] = conflict(results, theme)
    return found


def _pair(found: Spread | None) -> tuple[float, float | None] | None:
    return None if found is None else (found.mean, found.std)


def _infos(methods: Sequence[MethodInfo]) -> list[MethodInfo]:
    return [info for info in methods if info.group != "reference"]


def ranking(results: BenchmarkResults, theme: Theme = LIGHT) -> Figure:
    """Average accuracy of every method, a row each."""
    measured = {row.method for row in results.fusion}
    infos = [info for info in _infos(results.methods) if info.key in measured]
    series = [
        Dots(
            "tuned on validation images" if setting == "tuned" else "published settings",
            [_pair(spread(averages(results, (info.key, setting)))) for info in infos],
            look=1 if setting == "tuned" else 0,
            hollow=setting == "published",
        )
        for setting in ("published", "tuned")
        if any(setting in results.settings_of(info.key) for info in infos)
    ]
    levels = {}
    for key in references(results):
        if key is not None:
            mean = fmean(averages(results, (key, results.settings_of(key)[0])).values())
            levels[f"{label(results, key)}: {mean:.1f}%"] = mean
    return dot_figure(
        [info.label for info in infos],
        [Panel("", "average test accuracy (%)", series, levels)],
        title=f"Fusion of {len(results.tasks)} models: average over the tasks",
        apart=False,
        bold=[place for place, info in enumerate(infos) if info.group == "sta"],
        theme=theme,
    )


def radar_runs(results: BenchmarkResults) -> list[Run]:
    """The methods of the radar, six at most: bounds, two simple ones, the best other one, STA."""
    zero, fine = references(results)
    chosen: list[Run] = [(key, results.settings_of(key)[0]) for key in (fine, zero) if key is not None]
    for key in ("average", "task_arithmetic"):
        if results.settings_of(key):
            chosen.append((key, results.settings_of(key)[-1]))
    others = [
        (info.key, setting)
        for info, setting in runs(results)
        if info.group not in ("reference", "sta") and info.key not in ("average", "task_arithmetic")
    ]
    if others:
        chosen.append(max(others, key=lambda run: results.spread(*run).mean))
    own: list[Run] = [(info.key, setting) for info, setting in runs(results) if info.group == "sta"]
    lp = [run for run in own if run[0] == "sta_lp"]
    if own:
        chosen.append(max(lp or own, key=lambda run: results.spread(*run).mean))
    return chosen


def radar(results: BenchmarkResults, theme: Theme = LIGHT) -> Figure:
    """Accuracy by task of a few methods."""
    values: dict[str, list[float]] = {}
    colours: dict[str, int | None] = {}
    bounds = references(results)
    place = 1
    for run in radar_runs(results):
        name = named(results, run)
        values[name] = [results.spread(*run, task).mean for task in results.tasks]
        if run[0] in bounds:
            colours[name] = None
        elif results.method(run[0]).group == "sta":
            colours[name] = 0
        else:
            colours[name] = place
            place += 1
    return radar_figure(
        results.tasks, values, colours, title="Test accuracy by task, mean over the seeds", theme=theme
    )


def pairs(results: BenchmarkResults, theme: Theme = LIGHT) -> Figure:
    """Average accuracy of every pair of tasks, a row each (the paper's Fig. 3)."""
    colours = looks_among(results, [row.method for row in results.pairs], len(theme.colours))
    names = list(dict.fromkeys(row.tasks for row in results.pairs))
    series = []
    which = pair_runs(results)
    for run in which:
        found = {
            pair: {
                r.seed: r.average for r in results.pairs if (r.method, r.setting) == run and r.tasks == pair
            }
            for pair in names
        }
        several = sum(run[0] == key for key, _ in which) > 1
        text = (
            f"{label(results, run[0])} ({run[1]})" if several or run[1] == "tuned" else label(results, run[0])
        )
        hollow = several and run[1] == "published"
        series.append(Dots(text, [_pair(spread(found[pair])) for pair in names], colours.get(run[0]), hollow))
    return dot_figure(
        [pair_name(pair) for pair in names],
        [Panel("", "average test accuracy of the two tasks (%)", series)],
        title=f"All {len(names)} pairs of tasks fused",
        theme=theme,
    )


def forgetting(results: BenchmarkResults, theme: Theme = LIGHT) -> Figure:
    """Target and control after forgetting, averaged over the tasks, a row per method."""
    measured = {row.method for row in results.forgetting}
    infos = [info for info in _infos(results.forget_methods) if info.key in measured]
    control = results.control.replace("_", " ")
    panels = []
    for side, heading, unit in (
        ("target", "forgotten task: lower is better", "mean test accuracy (%)"),
        ("control", f"control ({control}): higher is better", "mean test accuracy (%)"),
    ):
        series = [
            Dots(
                f"tuned: keeps {kept_share(results)} of the control"
                if setting == "tuned"
                else "published settings",
                [_pair(spread(forgotten(results, (info.key, setting), side))) for info in infos],  # type: ignore[arg-type]
                look=1 if setting == "tuned" else 0,
                hollow=setting == "published",
            )
            for setting in ("published", "tuned")
            if any(setting in forget_settings(results, info.key) for info in infos)
        ]
        levels = {}
        for info in results.forget_methods:
            found = forgotten(results, (info.key, "published"), side)  # type: ignore[arg-type]
            if info.group == "reference" and found:
                levels[info.label] = fmean(found.values())
        panels.append(Panel(heading, unit, series, levels))
    return dot_figure(
        [info.label for info in infos],
        panels,
        title="Forgetting one task: mean over the tasks",
        apart=False,
        bold=[place for place, info in enumerate(infos) if info.group == "sta"],
        theme=theme,
    )


def trade_off(results: BenchmarkResults, theme: Theme = LIGHT) -> Figure:
    """Target against control, a line per method."""
    colours = looks_among(results, [point.method for point in results.trade_off], len(theme.colours))
    paths = []
    for method in dict.fromkeys(point.method for point in results.trade_off):
        found: dict[float, list[tuple[float, float]]] = {}
        for point in results.trade_off:
            if point.method == method:
                found.setdefault(point.x, []).append((point.target, point.control))
        name = symbol(results, method)
        stations = [
            Station(fmean(a for a, _ in values), fmean(b for _, b in values), f"{name} = {x:g}")
            for x, values in sorted(found.items())
        ]
        text = label(results, method, forgetting=True)
        ends = f"{name} from {min(found):g} to {max(found):g}"
        paths.append(Path(f"{text}, {ends}", stations, colours.get(method)))
    start = None
    for info in results.forget_methods:
        target, control = (
            forgotten(results, (info.key, "published"), side) for side in ("target", "control")
        )
        if info.group == "reference" and target and start is None:
            start = (info.label, fmean(target.values()), fmean(control.values()))
    return path_figure(
        paths,
        title="Forgetting: the better a method, the farther up and left",
        x_label="mean test accuracy on the forgotten task (%), lower is better",
        y_label=f"test accuracy on {results.control.replace('_', ' ')} (%), higher is better",
        start=start,
        theme=theme,
    )


def curve(results: BenchmarkResults, points: Sequence[CurvePoint], theme: Theme = LIGHT) -> Figure:
    """Accuracy against one varied thing, a line per method."""
    colours = looks_among(results, [point.method for point in points], len(theme.colours))
    varied, split = points[0].curve, points[0].split
    bands = [
        Band(
            label(results, method),
            [Point(x, found.mean, found.std) for x, found in by_value(points, method).items()],
            colours.get(method),
        )
        for method in dict.fromkeys(point.method for point in points)
    ]
    return band_figure(
        bands,
        title=CURVE_TITLES[varied],
        x_label=X_LABELS[varied],
        y_label=f"average {split} accuracy (%)",
        powers=varied == "samples",
        whole=varied == "tasks",
        theme=theme,
    )


def selected(results: BenchmarkResults) -> str:
    """Label of the method whose shares kept are shown."""
    key = results.record.get("settings", {}).get("selection")
    return next((info.label for info in results.methods if info.key == key), "STA")


def selection(results: BenchmarkResults, theme: Theme = LIGHT) -> Figure:
    """Share of entries kept per layer (the paper's Fig. 4)."""
    title = f"Share of entries that {selected(results)} keeps, by layer"
    return selection_figure(Selection.from_kept(results.kept), title=title, theme=theme)


def kept_by_kind(
    kept_shares: Mapping[str, Mapping[str, float]], tasks: Sequence[str]
) -> dict[str, list[float | None]]:
    """Kind of parameter -> share in percent for each task, the mean over the layers."""
    found: dict[str, dict[str, list[float]]] = {}
    for share in Selection.from_kept(kept_shares).shares:
        found.setdefault(share.kind, {}).setdefault(share.task, []).append(100 * share.share)
    return {
        kind: [fmean(shares[task]) if task in shares else None for task in tasks]
        for kind, shares in found.items()
    }


def kept(results: BenchmarkResults, theme: Theme = LIGHT) -> Figure:
    """Share of each task vector that survives, by kind of parameter."""
    tasks = Selection.from_kept(results.kept).tasks
    shares = kept_by_kind(results.kept, tasks)
    return heat_figure(
        list(shares),
        [task.replace("_", " ") for task in tasks],
        list(shares.values()),
        title=f"Share of each task vector that {selected(results)} keeps",
        bar_label="entries kept (%), mean over the layers",
        theme=theme,
    )


def conflict(results: BenchmarkResults, theme: Theme = LIGHT) -> Figure:
    """Share of the entries whose signs differ, task by task."""
    tasks = list(results.conflict)
    names = [task.replace("_", " ") for task in tasks]
    shares = [
        [
            100 * results.conflict[task][other] if other != task and other in results.conflict[task] else None
            for other in tasks
        ]
        for task in tasks
    ]
    return heat_figure(
        names,
        names,
        shares,
        title="Sign conflict between task vectors",
        bar_label="entries whose signs differ (%)",
        theme=theme,
    )
