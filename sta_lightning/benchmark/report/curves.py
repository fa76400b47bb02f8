"""What was varied: curves, and the trade-off of forgetting, by method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sta_lightning.benchmark.report.numbers import spaced
from sta_lightning.benchmark.report.tables import over
from sta_lightning.benchmark.results import BenchmarkResults, CurvePoint, TradeOffPoint
from sta_lightning.report.grid import Column, Grid, Line, Number


class Varied(NamedTuple):
    """What a curve is drawn against; ``reading`` says how its values are to be read."""

    symbol: str
    axis: str
    title: str
    reading: str


VARIED = {
    "p": Varied(
        "p",
        "p: quantile below which entries are dropped (no unit)",
        "Accuracy against p",
        "The larger p, the fewer entries are kept.",
    ),
    "scale": Varied(
        "λ",
        "λ: coefficient of the task vectors (no unit)",
        "Accuracy against λ",
        "The coefficient by which the merged task vector is multiplied.",
    ),
    "samples": Varied(
        "calibration samples per task",
        "calibration samples per task (log scale)",
        "Accuracy against calibration samples",
        "How many images of each task the importance, or what else a method reads from data, was "
        "computed on.",
    ),
    "tasks": Varied(
        "tasks fused",
        "number of tasks fused",
        "Accuracy against the number of tasks",
        "The mean over the subsets of tasks that were fused.",
    ),
}


def curve_groups(results: BenchmarkResults) -> dict[str, list[CurvePoint]]:
    """The curves that were measured by the names of their figures: ``curve_p`` and so on."""
    groups: dict[str, list[CurvePoint]] = {}
    for curve in VARIED:
        points = [point for point in results.curves if point.curve == curve]
        splits = sorted({point.split for point in points})
        for split in splits:
            name = f"curve_{curve}" if len(splits) == 1 else f"curve_{curve}_{split}"
            groups[name] = [point for point in points if point.split == split]
    return groups


def levels(results: BenchmarkResults, points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """What has no setting to vary, measured on the images of a curve over p or λ."""
    if points[0].curve not in ("p", "scale"):
        return []
    return [point for point in results.curves if (point.curve, point.split) == ("level", points[0].split)]


def by_method(points: Iterable[CurvePoint]) -> dict[str, dict[float, Number]]:
    """Method -> x -> spread over the seeds."""
    found: dict[str, dict[float, list[float]]] = {}
    for point in points:
        found.setdefault(point.method, {}).setdefault(point.x, []).append(point.average)
    return {method: {x: Number.of(values[x]) for x in sorted(values)} for method, values in found.items()}


def curve_grid(results: BenchmarkResults, points: Sequence[CurvePoint]) -> Grid:
    """The numbers of one figure: a row per value, a column per method."""
    found = by_method(points)
    symbol = VARIED[points[0].curve].symbol
    lines = [
        Line(f"{x:g}", tuple(spreads.get(x) for spreads in found.values()))
        for x in sorted({point.x for point in points})
    ]
    without = [
        f"{results.method(method).label} {spreads[0.0].shown}"
        for method, spreads in by_method(levels(results, points)).items()
    ]
    return Grid(
        name="",
        title=f"Average {points[0].split} accuracy in percent, by {symbol}",
        head=symbol,
        columns=tuple(Column(results.method(method).label) for method in found),
        lines=tuple(lines),
        note=over(results) + (f" Without {symbol}: {', '.join(without)}." if without else ""),
    )


def curves_csv(results: BenchmarkResults) -> Grid:
    """Every curve, a row per point, with the accuracy on each task where it was measured."""
    tasks = [task for task in results.tasks if any(task in point.accuracy for point in results.curves)]
    found: dict[tuple[str, str, str, float], list[CurvePoint]] = {}
    for point in results.curves:
        found.setdefault((point.curve, point.split, point.method, point.x), []).append(point)
    order = [*VARIED, "level"]
    lines = []
    for key in sorted(found, key=lambda key: (order.index(key[0]), key[1])):
        curve, split, method, x = key
        by_task = [[point.accuracy[task] for point in found[key] if task in point.accuracy] for task in tasks]
        place = None if curve == "level" else Number(x)
        average = Number.of([point.average for point in found[key]])
        accuracies = (Number.of(values) if values else None for values in by_task)
        lines.append(Line(curve, (results.method(method).label, split, place, average, *accuracies)))
    names = ("method", "images", "x", "average accuracy", *map(spaced, tasks))
    return Grid("curves", "Curves", "curve", tuple(map(Column, names)), tuple(lines))


def trade_off(results: BenchmarkResults) -> dict[str, dict[float, tuple[Number, Number]]]:
    """Method -> p or γ -> target and control over the seeds."""
    found: dict[str, dict[float, list[TradeOffPoint]]] = {}
    for point in results.trade_off:
        found.setdefault(point.method, {}).setdefault(point.x, []).append(point)
    return {
        method: {
            x: (Number.of([point.target for point in same]), Number.of([point.control for point in same]))
            for x, same in sorted(points.items())
        }
        for method, points in found.items()
    }


def trade_off_grid(results: BenchmarkResults) -> Grid:
    """Target and control at every p and γ."""
    labels = {info.key: info.label for info in results.forget_methods}
    return Grid(
        name="trade_off",
        title="Forgetting at every setting: mean test accuracy in percent over the tasks",
        head="method",
        columns=tuple(map(Column, ("setting", "target", "control"))),
        lines=tuple(
            Line(labels[method], (f"{symbol(results, method)} = {x:g}", *both))
            for method, spreads in trade_off(results).items()
            for x, both in spreads.items()
        ),
        note=over(results),
    )


def symbol(results: BenchmarkResults, method: str) -> str:
    """What a forgetting method's setting is called: γ for a coefficient to tune, p otherwise."""
    infos = (*results.forget_methods, *results.methods)
    return "γ" if any(info.key == method and info.coefficient for info in infos) else "p"
