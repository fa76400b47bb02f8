"""The figures of a benchmark's report."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure

from sta_lightning.benchmark.report.curves import VARIED, by_method, levels, symbol, trade_off
from sta_lightning.benchmark.report.numbers import Measure, Scores, looks_among, pair_scores, scores, spaced
from sta_lightning.benchmark.report.tables import conflict_grid, kept_share, pair_name
from sta_lightning.benchmark.results import BenchmarkResults, CurvePoint, MethodInfo, Run
from sta_lightning.report.dots import Dots, Panel, dot_figure
from sta_lightning.report.heat import grid_figure, heat_figure
from sta_lightning.report.lines import Band, Path, Station, band_figure, path_figure
from sta_lightning.report.radar import radar_figure
from sta_lightning.report.selection import Selection, selection_figure
from sta_lightning.report.style import LIGHT


def ranking(results: BenchmarkResults) -> Figure:
    """Average accuracy of every method, a row each, the best on top."""
    found = scores(results)
    keys = _keys(found.ranked())
    panel = _panel(found, keys, "", "average test accuracy (%)", "tuned on validation images")
    title = f"Fusion of {len(results.tasks)} models: average over the tasks"
    return _rows([found.infos[key] for key in keys], [panel], title)


def forgetting(results: BenchmarkResults) -> Figure:
    """Target and control after forgetting, averaged over the tasks, the lowest target on top."""
    target = scores(results, "target")
    keys = _keys(target.ranked(low=True))
    headings: dict[Measure, str] = {
        "target": "forgotten task: lower is better",
        "control": f"control ({spaced(results.control)}): higher is better",
    }
    tuned = f"tuned: keeps {kept_share(results)} of the control"
    panels = [
        _panel(scores(results, side), keys, heading, "mean test accuracy (%)", tuned)
        for side, heading in headings.items()
    ]
    infos = [target.infos[key] for key in keys]
    return _rows(infos, panels, "Forgetting one task: mean over the tasks")


def _keys(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(key for key, _ in runs))


def _panel(found: Scores, keys: Sequence[str], heading: str, x_label: str, tuned: str) -> Panel:
    """A series per setting, the references as upright lines; a lone panel gives their numbers."""
    series = [
        Dots(
            tuned if setting == "tuned" else "published settings",
            [found.spread((key, setting)) for key in keys],
            look=1 if setting == "tuned" else 0,
            hollow=setting == "published",
        )
        for setting in dict.fromkeys(sorted(setting for _, setting in found.runs()))
    ]
    levels = {}
    for run in found.runs("reference"):
        label = found.infos[run[0]].label
        levels[label if heading else f"{label}: {found.mean(run):.1f}%"] = found.mean(run)
    return Panel(heading, x_label, series, levels)


def _rows(infos: Sequence[MethodInfo], panels: Sequence[Panel], title: str) -> Figure:
    return dot_figure(
        [info.label for info in infos],
        panels,
        title=title,
        apart=False,
        bold=[place for place, info in enumerate(infos) if info.group == "sta"],
    )


def radar_runs(found: Scores) -> list[Run]:
    """The methods of the radar, six at most: bounds, two simple ones, the best, the paper's STA."""
    chosen = [*reversed(found.runs("reference"))]
    for keys in (("average",), ("task_arithmetic",), list(found.infos), ("sta_lp",)):
        runs = [run for run in found.runs() if run[0] in keys]
        chosen += [found.best(runs)] if runs else []
    return list(dict.fromkeys(chosen))


def radar(results: BenchmarkResults) -> Figure:
    """Accuracy by task of a few methods."""
    found = scores(results)
    by_task = [scores(results, "fusion", task) for task in results.tasks]
    values: dict[str, list[float]] = {}
    colours: dict[str, int | None] = {}
    for run in radar_runs(found):
        name = found.named(run)
        values[name] = [one.mean(run) for one in by_task]
        drawn = sum(look is not None for look in colours.values())
        colours[name] = None if found.group(run) == "reference" else drawn
    return radar_figure(results.tasks, values, colours, title="Test accuracy by task, mean over the seeds")


def pairs(results: BenchmarkResults) -> Figure:
    """Average accuracy of every pair of tasks, a row each (the paper's Fig. 3)."""
    colours = looks_among(results, [row.method for row in results.pairs], len(LIGHT.colours))
    total = pair_scores(results)
    by_pair = {pair: pair_scores(results, pair) for pair in dict.fromkeys(row.tasks for row in results.pairs)}
    series = [
        Dots(
            total.named(run),
            [found.spread(run) for found in by_pair.values()],
            colours[run[0]],
            hollow=len(total.settings(run[0])) > 1 and run[1] == "published",
        )
        for run in total.values
    ]
    return dot_figure(
        list(map(pair_name, by_pair)),
        [Panel("", "average test accuracy of the two tasks (%)", series)],
        title=f"All {len(by_pair)} pairs of tasks fused",
    )


def trade_offs(results: BenchmarkResults) -> Figure:
    """Target against control, a line per method."""
    found = trade_off(results)
    colours = looks_among(results, found, len(LIGHT.colours))
    target, control = scores(results, "target"), scores(results, "control")
    paths = []
    for method, points in found.items():
        name = symbol(results, method)
        stations = [Station(one.mean, two.mean, f"{name} = {x:g}") for x, (one, two) in points.items()]
        label = next(info.label for info in results.forget_methods if info.key == method)
        ends = f"{name} from {min(points):g} to {max(points):g}"
        paths.append(Path(f"{label}, {ends}", stations, colours[method]))
    start = None
    for run in target.runs("reference"):
        start = (target.infos[run[0]].label, target.mean(run), control.mean(run))
    return path_figure(
        paths,
        title="Forgetting: the better a method, the farther up and left",
        x_label="mean test accuracy on the forgotten task (%), lower is better",
        y_label=f"test accuracy on {spaced(results.control)} (%), higher is better",
        start=start,
    )


def curve(results: BenchmarkResults, points: Sequence[CurvePoint]) -> Figure:
    """Accuracy against one varied thing, a line per method."""
    found = by_method(points)
    colours = looks_among(results, found, len(LIGHT.colours))
    varied, split = points[0].curve, points[0].split
    return band_figure(
        [
            Band(
                results.method(method).label,
                list(spreads.items()),
                colours[method],
                _used(results, method, varied),
            )
            for method, spreads in found.items()
        ],
        levels={
            results.method(method).label: fmean(spread.mean for spread in spreads.values())
            for method, spreads in by_method(levels(results, points)).items()
        },
        title=VARIED[varied].title,
        x_label=VARIED[varied].axis,
        y_label=f"average {split} accuracy (%)",
        powers=varied == "samples",
        whole=varied == "tasks",
    )


def _used(results: BenchmarkResults, method: str, varied: str) -> frozenset[float]:
    """The values with which the table's rows of a method were made."""
    found = [row.chosen.get(varied) for row in results.fusion if row.method == method]
    return frozenset(float(value) for value in found if isinstance(value, (int, float)))


def selected(results: BenchmarkResults) -> str:
    """Label of the method whose shares kept are shown."""
    key = results.record.get("settings", {}).get("selection")
    return next((info.label for info in results.methods if info.key == key), "STA")


def selection(results: BenchmarkResults) -> Figure:
    """Share of entries kept per layer (the paper's Fig. 4)."""
    title = f"Share of entries that {selected(results)} keeps, by layer"
    return selection_figure(Selection(results.kept), title=title)


def survivors(results: BenchmarkResults) -> Figure:
    """Share of each task vector that survives, by kind of parameter, mean over the layers."""
    kept = Selection(results.kept)
    found = kept.by_kind()
    return heat_figure(
        list(found),
        list(map(spaced, kept.tasks)),
        [
            [fmean(100 * share for _, share in row[task]) if task in row else None for task in kept.tasks]
            for row in found.values()
        ],
        title=f"Entries of each task vector that {selected(results)} keeps (%), mean over the layers",
    )


def conflict(results: BenchmarkResults) -> Figure:
    """Share of the entries whose signs differ, task by task."""
    return grid_figure(conflict_grid(results), "Entries of two task vectors whose signs differ (%)")
