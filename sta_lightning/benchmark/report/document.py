"""The report of a benchmark: one page, the same in Markdown, its tables as CSV and its figures as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sta_lightning.benchmark.report.curves import curve_grid, curve_groups, curves_csv, trade_off_grid
from sta_lightning.benchmark.report.duels import duel_grid, duels_csv
from sta_lightning.benchmark.report.figures import CURVE_TITLES, all_figures, radar_runs, selected
from sta_lightning.benchmark.report.numbers import (
    duels,
    forget_duels,
    forget_runs,
    forgotten,
    named,
    plain,
    runs,
    spread,
)
from sta_lightning.benchmark.report.summary import forgetting_items, fusion_items, reading
from sta_lightning.benchmark.report.tables import (
    conflict_grid,
    forgetting_grid,
    fusion_grid,
    pairs_grid,
    properties_grid,
)
from sta_lightning.benchmark.results import BenchmarkResults
from sta_lightning.experiment.steps import write_text
from sta_lightning.report.document import Block, Details, Document, Drawn, Picture, Section, html, markdown
from sta_lightning.report.embed import data_uri, pixels
from sta_lightning.report.grid import Column, Grid, Line
from sta_lightning.report.selection import Selection
from sta_lightning.report.style import save_png
from sta_lightning.report.theme import DARK


def write_report(results: BenchmarkResults, output: Path) -> Path:
    """Write the report and everything that it is made of, each file whole or not at all.

    Args:
        results: what the benchmark found.
        output: folder for report.html, report.md, a CSV for each table and a PNG for each figure.

    Returns:
        The path of report.html.
    """
    document = describe(results)
    for name, text in csv_tables(results).items():
        write_text(output / f"{name}.csv", text)
    light, dark = figures(results), all_figures(results, DARK)
    for name, figure in light.items():
        save_png(figure, output / f"{name}.png")
    drawn = {
        name: Drawn(data_uri(figure), data_uri(dark[name]), *pixels(figure)) for name, figure in light.items()
    }
    write_text(output / "report.md", markdown(document))
    return write_text(output / "report.html", html(document, drawn))


def figures(results: BenchmarkResults) -> dict[str, Figure]:
    """Every figure that there is data for, by name, for a light page."""
    return all_figures(results)


def csv_tables(results: BenchmarkResults) -> dict[str, str]:
    """Every table as CSV by the name of its file."""
    found = [grid for grid in describe(results).grids() if grid.name]
    tables = {grid.name: grid.csv() for grid in found}
    if results.curves:
        tables["curves"] = curves_csv(results).csv()
    if results.kept:
        tables["selection"] = Selection.from_kept(results.kept).csv()
    if results.conflict:
        tables["conflict"] = conflict_grid(results).csv()
    measures = [
        ("fusion", duels(results)),
        *((side, forget_duels(results, side)) for side in ("target", "control")),
    ]
    if any(found for _, found in measures):
        tables["verdicts"] = duels_csv(results, measures).csv()
    return tables


def describe(results: BenchmarkResults) -> Document:
    """The report's sections; one without data is left out."""
    sections = [
        _summary(results),
        _fusion(results),
        _pairs(results),
        _forgetting(results),
        _sensitivity(results),
        _kept(results),
        _methods(results),
        _record(results),
    ]
    seeds = f"{len(results.seeds)} seeds" if len(results.seeds) > 1 else "one seed"
    subtitle = f"{len(results.tasks)} tasks, encoder {results.encoder}, {seeds} of fine-tuning"
    if "date" in results.record:
        subtitle += f", {results.record['date']}"
    return Document(results.title, subtitle, tuple(section for section in sections if section is not None))


def _summary(results: BenchmarkResults) -> Section | None:
    blocks: list[Block] = []
    fused, forgot = fusion_items(results), forgetting_items(results)
    if fused:
        blocks += ["Fusion: one model for all tasks.", fused]
        found = duels(results)
        if found:
            title = "Fusion: difference of the averages in points, STA minus the other method"
            blocks.append(Details("Every comparison of fusion", (duel_grid(results, [("", found)], title),)))
    if forgot:
        blocks += [
            "Forgetting: one task is to be lost (target, lower is better), the rest to be kept "
            f"(control: {results.control.replace('_', ' ')}, higher is better).",
            forgot,
        ]
        sides = [(side, forget_duels(results, side)) for side in ("target", "control")]
        if any(found for _, found in sides):
            title = "Forgetting: difference in points, STA minus the other method"
            grid = duel_grid(results, sides, title, forgetting=True)
            blocks.append(Details("Every comparison of forgetting", (grid,)))
    return Section("summary", "What was found", (reading(results), *blocks)) if blocks else None


def _fusion(results: BenchmarkResults) -> Section | None:
    if not results.fusion:
        return None
    merges = [(info.key, setting) for info, setting in runs(results) if info.group != "reference"]
    numbers = "; ".join(f"{named(results, run)} {results.spread(*run).mean:.1f}" for run in merges)
    blocks: list[Block] = [
        fusion_grid(results),
        Picture(
            "fusion",
            "Average accuracy of every method",
            "A dot is the mean over the seeds, a whisker one standard deviation. Upright lines: the references. "
            "STA's variants are printed bold. The axis does not begin at zero.",
            f"Dot plot of the average test accuracy in percent after fusion. {numbers}.",
        ),
    ]
    if len(results.tasks) > 2:
        which = ", ".join(named(results, run) for run in radar_runs(results))
        blocks.append(
            Picture(
                "radar",
                "Accuracy by task",
                "Farther from the centre is better; the centre is not zero. The best of the other methods and STA LP are shown "
                "under the setting with the higher average.",
                f"Radar chart of the test accuracy on every task for {which}. The numbers stand in the table of fusion.",
            )
        )
    return Section("fusion", "Fusion", tuple(blocks))


def _pairs(results: BenchmarkResults) -> Section | None:
    if not results.pairs:
        return None
    grid = pairs_grid(results)
    last = grid.lines[-1]
    means = ", ".join(
        f"{column.name} {grid.text(cell)}" for column, cell in zip(grid.columns, last.cells, strict=True)
    )
    picture = Picture(
        "pairs",
        "Two tasks fused",
        "As the paper's Fig. 3, which has STA and task arithmetic. A dot is the mean over the seeds, a whisker one standard "
        "deviation. The axis does not begin at zero.",
        f"Dot plot of the average test accuracy of {len(grid.lines) - 1} pairs of tasks. Means of all pairs: {means}.",
    )
    return Section("pairs", "Pairs of tasks", (picture, Details("The numbers of the pairs", (grid,))))


def _forgetting(results: BenchmarkResults) -> Section | None:
    blocks: list[Block] = []
    if results.forgetting:
        numbers = []
        for info, setting in forget_runs(results):
            run = (info.key, setting)
            found = [spread(forgotten(results, run, side)) for side in ("target", "control")]
            shown = " / ".join("–" if one is None else f"{one.mean:.1f}" for one in found)
            numbers.append(f"{named(results, run, forgetting=True)} {shown}")
        blocks += [
            forgetting_grid(results),
            Picture(
                "forgetting",
                "Target and control after forgetting",
                "Means over the forgotten tasks; a whisker is one standard deviation over the seeds. Upright line: the "
                "pretrained model. The axes do not begin at zero.",
                "Two dot plots: mean accuracy on the forgotten task, and on the control. Target / control: "
                f"{'; '.join(numbers)}.",
            ),
        ]
    if results.trade_off:
        grid = trade_off_grid(results)
        blocks += [
            Picture(
                "trade_off",
                "What forgetting costs",
                "A line per method through its settings, means over tasks and seeds; the first and the last setting are "
                "labelled where there is room and named in the legend. Up and to the left is better.",
                "Lines of the control's accuracy against the forgotten task's, a line per method. The numbers stand in the "
                "table below.",
            ),
            Details("The numbers of the trade-off", (grid,)),
        ]
    return Section("forgetting", "Forgetting", tuple(blocks)) if blocks else None


def _sensitivity(results: BenchmarkResults) -> Section | None:
    blocks: list[Block] = []
    for name, points in curve_groups(results).items():
        title, split = CURVE_TITLES[points[0].curve], points[0].split
        reads = {
            "p": "The larger p, the fewer entries are kept.",
            "scale": "The coefficient by which the merged task vector is multiplied.",
            "samples": "How many images of each task the importance, or what else a method reads from data, was computed on.",
            "tasks": "The mean over the subsets of tasks that were fused.",
        }[points[0].curve]
        band = "The band is one standard deviation over the seeds. " if len(results.seeds) > 1 else ""
        blocks += [
            Picture(
                name,
                title,
                f"Average over the tasks, {split} images. {reads} {band}The axis does not begin at zero.",
                f"Lines of the average {split} accuracy in percent, a line per method. The numbers stand in the table below.",
            ),
            Details(f"The numbers: {title[0].lower()}{title[1:]}", (curve_grid(results, points),)),
        ]
    return Section("sensitivity", "Sensitivity", tuple(blocks)) if blocks else None


def _kept(results: BenchmarkResults) -> Section | None:
    blocks: list[Block] = []
    seed = f"Seed {results.seeds[0]}." if results.seeds else ""
    if results.kept:
        blocks += [
            Picture(
                "selection",
                "Share of entries kept, by layer",
                f"As the paper's Fig. 4: a panel per kind of parameter, a line per task. {seed}",
                "Panels of the share of entries kept in percent against the layer. The numbers are in selection.csv.",
            ),
            Picture(
                "kept",
                "Share of each task vector that survives",
                f"Mean over the layers of the share of entries that {selected(results)} keeps, in percent, by kind of "
                f"parameter. {seed}",
                "Heat map of the share of entries kept, kind of parameter by task, its number in every cell.",
            ),
        ]
    if len(results.conflict) > 1:
        blocks.append(
            Picture(
                "conflict",
                "Sign conflict between tasks",
                f"Of the entries that are not zero in both task vectors, the share in percent whose signs differ; 50 is what "
                f"chance gives. {seed}",
                "Heat map of the share of entries whose signs differ, task by task, its number in every cell.",
            )
        )
    return Section("kept", "What is kept", tuple(blocks)) if blocks else None


def _methods(results: BenchmarkResults) -> Section | None:
    grid = properties_grid(_all_methods(results))
    return Section("methods", "Methods", (grid,)) if grid.lines else None


def _all_methods(results: BenchmarkResults) -> list[Any]:
    merging = {info.key for info in results.methods}
    return [*results.methods, *(info for info in results.forget_methods if info.key not in merging)]


def _record(results: BenchmarkResults) -> Section:
    record = results.record
    rows = [(name, plain(record[name])) for name in ("command", "date", "hardware") if name in record]
    if "seconds" in record:
        rows.append(("time", _duration(record["seconds"])))
    rows += [("encoder", results.encoder), ("seeds", ", ".join(map(str, results.seeds)))]
    blocks = [_pairs_of("How the numbers came about", rows)]
    for name, title in (
        ("versions", "Versions"),
        ("settings", "Settings"),
        ("hashes", "SHA-256 of the input files"),
    ):
        if record.get(name):
            value = record[name]
            inner = (
                [row for key, one in value.items() for row in _flat(one, str(key))]
                if isinstance(value, Mapping)
                else [(name, plain(value))]
            )
            blocks.append(_pairs_of(title, inner))
    if results.images:
        splits = list(results.images)
        sets = list(dict.fromkeys(name for split in splits for name in results.images[split]))
        lines = tuple(
            Line(name, tuple(_count(results.images[split].get(name)) for split in splits)) for name in sets
        )
        blocks.append(Grid("", "Images", "set", tuple(Column(split) for split in splits), lines))
    text = "All numbers are in results.json, the tables in the CSV files and the figures in the PNG files beside this report."
    details = Details("Command, versions, settings, hashes, images", tuple(blocks))
    return Section("record", "How these numbers came about", (text, details))


def _pairs_of(title: str, rows: list[tuple[str, str]]) -> Grid:
    return Grid("", title, "what", (Column("value"),), tuple(Line(name, (value,)) for name, value in rows))


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as a line each: ``models.encoder``."""
    if not isinstance(value, Mapping) or not value:
        return [(name, plain(value) or "none")]
    return [row for key, one in value.items() for row in _flat(one, f"{name}.{key}" if name else str(key))]


def _count(found: int | None) -> str | None:
    return None if found is None else str(found)


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return plain(seconds)
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s" if minutes else f"{seconds:.1f} s"
    )
