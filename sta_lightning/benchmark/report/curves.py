"""The tables of what was varied: curves, and the trade-off of forgetting."""

from __future__ import annotations

from collections.abc import Sequence

from sta_lightning.benchmark.report.numbers import label
from sta_lightning.benchmark.report.tables import number, over
from sta_lightning.benchmark.results import BenchmarkResults, CurvePoint, Spread
from sta_lightning.report.grid import Column, Grid, Line, Number

AXES = {
    "p": "p",
    "scale": "λ",
    "samples": "calibration samples per task",
    "tasks": "tasks fused",
}


def curve_groups(results: BenchmarkResults) -> dict[str, list[CurvePoint]]:
    """The curves that were measured by the names of their figures: ``curve_p`` and so on."""
    groups: dict[str, list[CurvePoint]] = {}
    for curve in AXES:
        points = [point for point in results.curves if point.curve == curve]
        splits = sorted({point.split for point in points})
        for split in splits:
            name = f"curve_{curve}" if len(splits) == 1 else f"curve_{curve}_{split}"
            groups[name] = [point for point in points if point.split == split]
    return groups


def by_value(points: Sequence[CurvePoint], method: str) -> dict[float, Spread]:
    """X -> spread over the seeds of one method's curve."""
    found: dict[float, dict[int, float]] = {}
    for point in points:
        if point.method == method:
            found.setdefault(point.x, {})[point.seed] = point.average
    return {x: Spread.of(list(found[x].values())) for x in sorted(found)}


def curve_grid(results: BenchmarkResults, points: Sequence[CurvePoint]) -> Grid:
    """The numbers of one figure: a row per value, a column per method."""
    methods = list(dict.fromkeys(point.method for point in points))
    spreads = {method: by_value(points, method) for method in methods}
    values = sorted({point.x for point in points})
    return Grid(
        name="",
        title=f"Average {points[0].split} accuracy in percent, by {AXES[points[0].curve]}",
        head=AXES[points[0].curve],
        columns=tuple(Column(label(results, method)) for method in methods),
        lines=tuple(
            Line(f"{x:g}", tuple(number(spreads[method].get(x)) for method in methods)) for x in values
        ),
        note=over(results),
    )


def curves_csv(results: BenchmarkResults) -> Grid:
    """Every curve, a row per point."""
    lines = []
    for points in curve_groups(results).values():
        for method in dict.fromkeys(point.method for point in points):
            for x, found in by_value(points, method).items():
                lines.append(
                    Line(points[0].curve, (label(results, method), points[0].split, Number(x), number(found)))
                )
    names = ("method", "images", "x", "average accuracy")
    return Grid("curves", "Curves", "curve", tuple(Column(name) for name in names), tuple(lines))


def trade_off_grid(results: BenchmarkResults) -> Grid:
    """Target and control at every p and γ."""
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for point in results.trade_off:
        found.setdefault((point.method, point.x), []).append((point.target, point.control))
    order = {
        key: place for place, key in enumerate(dict.fromkeys(point.method for point in results.trade_off))
    }
    lines = [
        Line(
            label(results, method, forgetting=True),
            (
                f"{symbol(results, method)} = {x:g}",
                number(Spread.of([target for target, _ in found[method, x]])),
                number(Spread.of([control for _, control in found[method, x]])),
            ),
        )
        for method, x in sorted(found, key=lambda key: (order[key[0]], key[1]))
    ]
    columns = (Column("setting"), Column("target"), Column("control"))
    return Grid(
        name="trade_off",
        title="Forgetting at every setting: mean test accuracy in percent over the tasks",
        head="method",
        columns=columns,
        lines=tuple(lines),
        note=over(results),
    )


def symbol(results: BenchmarkResults, method: str) -> str:
    """What a forgetting method's setting is called: γ if it has a coefficient to tune, p otherwise."""
    infos = (*results.forget_methods, *results.methods)
    return "γ" if any(info.key == method and info.coefficient for info in infos) else "p"
