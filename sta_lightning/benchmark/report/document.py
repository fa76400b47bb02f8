"""The report of a benchmark: a page, the same in Markdown, tables as CSV, figures as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sta_lightning.benchmark.report import curves, drawings, tables
from sta_lightning.benchmark.report.numbers import SIDES, Measure, Scores, duels, plain, scores, spaced
from sta_lightning.benchmark.report.summary import (
    forgetting_headline,
    forgetting_items,
    fusion_items,
    handed_out,
    headline,
    reading,
)
from sta_lightning.benchmark.results import BenchmarkResults
from sta_lightning.benchmark.steps import write_text
from sta_lightning.report.document import Block, Details, Document, Picture, Section, html, markdown
from sta_lightning.report.embed import svg, svg_file
from sta_lightning.report.grid import Column, Grid, Line
from sta_lightning.report.selection import Selection

_AXIS = "The axis does not begin at zero."
_BELOW = "The numbers stand in the table below."


def write_report(results: BenchmarkResults, output: Path) -> Path:
    """Write report.html, whose path is returned, and report.md, a CSV a table and an SVG a figure.

    Each file is written whole or not at all.
    """
    document = describe(results)
    for name, text in csv_tables(results).items():
        write_text(output / f"{name}.csv", text)
    drawn = {}
    for picture in document.pictures():
        drawing = svg(picture.draw(), picture.name, picture.alt)
        write_text(output / f"{picture.name}.svg", svg_file(drawing))
        drawn[picture.name] = drawing
    write_text(output / "report.md", markdown(document))
    return write_text(output / "report.html", html(document, drawn))


def csv_tables(results: BenchmarkResults) -> dict[str, str]:
    """Every table as CSV by the name of its file."""
    grids = [grid for grid in describe(results).grids() if grid.name]
    if results.curves:
        grids.append(curves.curves_csv(results))
    if results.conflict:
        grids.append(tables.conflict_grid(results))
    verdicts = tables.duels_csv(results, {name: duels(results, name) for name in ("fusion", *SIDES)})
    if verdicts.lines:
        grids.append(verdicts)
    found = {grid.name: grid.csv() for grid in grids}
    if results.kept:
        found["selection"] = Selection(results.kept).csv()
    return found


def console(results: BenchmarkResults) -> str:
    """The tables of fusion and forgetting with a sentence each, as plain text for a terminal."""
    parts = []
    if results.fusion:
        parts += [tables.fusion_grid(results).terminal(), headline(results)]
    if results.forgetting:
        parts += [tables.forgetting_grid(results).terminal(), forgetting_headline(results)]
    return "\n".join(parts)


def describe(results: BenchmarkResults) -> Document:
    """The report's sections; one without data is left out."""
    merging = {info.key for info in results.methods}
    methods = [*results.methods, *(info for info in results.forget_methods if info.key not in merging)]
    properties = tables.merges_grid(methods, results)
    sections = (
        Section("fusion", "Fusion", _fusion(results)),
        Section("pairs", "Pairs of tasks", _pairs(results)),
        Section("forgetting", "Forgetting", _forgetting(results)),
        Section("sensitivity", "Sensitivity", _sensitivity(results)),
        Section("kept", "What is kept", _kept(results)),
        Section("methods", "Methods", (properties,) if properties.lines else ()),
        Section("record", "How these numbers came about", _record(results)),
    )
    seeds = f"{len(results.seeds)} seeds" if len(results.seeds) > 1 else "one seed"
    subtitle = f"{len(results.tasks)} tasks, encoder {results.encoder}, {seeds} of fine-tuning"
    if "date" in results.record:
        subtitle += f", {results.record['date']}"
    shown = tuple(section for section in sections if section.blocks)
    return Document(results.title, subtitle, headline(results), shown)


def _comparisons(results: BenchmarkResults, what: str, number: str, *measures: Measure) -> list[Block]:
    title = f"{what.capitalize()}: {number} in points, STA minus the other method"
    grid = tables.duel_grid(results, {name: duels(results, name) for name in measures}, title)
    return [Details(f"Every comparison of {what}", (grid,))] if grid.lines else []


def _fusion(results: BenchmarkResults) -> tuple[Block, ...]:
    if not results.fusion:
        return ()
    found = scores(results)
    numbers = "; ".join(f"{found.named(run)} {found.mean(run):.1f}" for run in found.ranked())
    both = "A ring is the published setting, a square the tuned one. " if len(_settings(found)) > 1 else ""
    blocks: list[Block] = [
        Picture(
            "fusion",
            "Average accuracy of every method",
            f"{_dots(results)}{both}Upright lines: the references. STA's variants are printed bold. {_AXIS}",
            f"Dot plot of the average test accuracy in percent after fusion. {numbers}.",
            partial(drawings.ranking, results),
        ),
        tables.fusion_grid(results),
    ]
    if items := fusion_items(results):
        blocks.append(Details("STA against every other method", (reading(results), items)))
    blocks += _comparisons(results, "fusion", "difference of the averages", "fusion")
    if len(results.tasks) > 2:
        which = ", ".join(map(found.named, drawings.radar_runs(found)))
        blocks.append(
            Picture(
                "radar",
                "Accuracy by task",
                "Farther from the centre is better; the centre is not zero. Two simple methods, the best one and the "
                "paper's are shown, each under the setting with the higher average.",
                f"Radar chart of the test accuracy on every task for {which}. The numbers stand in the "
                "table of fusion.",
                partial(drawings.radar, results),
            )
        )
    return tuple(blocks)


def _settings(found: Scores) -> set[str]:
    return {setting for _, setting in found.runs()}


def _dots(results: BenchmarkResults) -> str:
    if len(results.seeds) == 1:
        return "A dot is the mean of one seed. "
    return "A dot is the mean over the seeds, a whisker one standard deviation. "


def _pairs(results: BenchmarkResults) -> tuple[Block, ...]:
    if not results.pairs:
        return ()
    grid = tables.pairs_grid(results)
    means = ", ".join(
        f"{column.name} {grid.text(cell)}"
        for column, cell in zip(grid.columns, grid.lines[-1].cells, strict=True)
    )
    picture = Picture(
        "pairs",
        "Two tasks fused",
        f"As the paper's Fig. 3, which has STA and task arithmetic. {_dots(results)}{_AXIS}",
        f"Dot plot of the average test accuracy of {len(grid.lines) - 1} pairs of tasks. Means of all "
        f"pairs: {means}.",
        partial(drawings.pairs, results),
    )
    return picture, Details("The numbers of the pairs", (grid,))


def _forgetting(results: BenchmarkResults) -> tuple[Block, ...]:
    blocks: list[Block] = []
    if results.forgetting:
        target, control = scores(results, "target"), scores(results, "control")
        numbers = "; ".join(
            f"{target.named(run)} {target.mean(run):.1f} / {control.mean(run):.1f}" for run in target.values
        )
        blocks += [
            "One task is to be lost (target, lower is better), the rest to be kept "
            f"(control: {spaced(results.control)}, higher is better).",
            Picture(
                "forgetting",
                "Target and control after forgetting",
                f"Averages over the forgotten tasks. {_dots(results)}Upright line: the pretrained model. The axes do "
                "not begin at zero.",
                "Two dot plots: mean accuracy on the forgotten task, and on the control. Target / control: "
                f"{numbers}.",
                partial(drawings.forgetting, results),
            ),
            tables.forgetting_grid(results),
        ]
        if items := forgetting_items(results):
            blocks.append(Details("STA against negation and the controls", (reading(results), items)))
        blocks += _comparisons(results, "forgetting", "difference", *SIDES)
    if results.trade_off:
        blocks += [
            Picture(
                "trade_off",
                "What forgetting costs",
                "A line per method through its settings, means over tasks and seeds; the first and the last "
                "setting are labelled where there is room and named in the legend. Up and to the left is "
                "better.",
                f"Lines of the control's accuracy against the forgotten task's, a line per method. {_BELOW}",
                partial(drawings.trade_offs, results),
            ),
            Details("The numbers of the trade-off", (curves.trade_off_grid(results),)),
        ]
    return tuple(blocks)


def _sensitivity(results: BenchmarkResults) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for name, points in curves.curve_groups(results).items():
        varied, split = curves.VARIED[points[0].curve], points[0].split
        band = "The band is one standard deviation over the seeds. " if len(results.seeds) > 1 else ""
        beside = "Level lines: what has no such setting. " if curves.levels(results, points) else ""
        blocks += [
            Picture(
                name,
                varied.title,
                f"Average over the tasks, {split} images. {varied.reading} {band}{beside}{_AXIS}",
                f"Lines of the average {split} accuracy in percent, a line per method. {_BELOW}",
                partial(drawings.curve, results, points),
            ),
            Details(
                f"The numbers: {varied.title[0].lower()}{varied.title[1:]}",
                (curves.curve_grid(results, points),),
            ),
        ]
    return tuple(blocks)


def _kept(results: BenchmarkResults) -> tuple[Block, ...]:
    blocks: list[Block] = []
    seed = f"Seed {results.seeds[0]}." if results.seeds else ""
    if Selection(results.kept).main_kinds():
        blocks.append(
            Picture(
                "selection",
                "Share of entries kept, by layer",
                f"As the paper's Fig. 4: a panel per kind of parameter, a line per task. {seed}",
                "Panels of the share of entries kept in percent against the layer. The numbers are in "
                "selection.csv.",
                partial(drawings.selection, results),
            )
        )
    if results.kept:
        blocks.append(
            Picture(
                "kept",
                "Share of each task vector that survives",
                f"Mean over the layers of the share of entries that {drawings.selected(results)} keeps, in "
                f"percent, by kind of parameter. {seed}",
                "Heat map of the share of entries kept, kind of parameter by task, its number in every cell.",
                partial(drawings.survivors, results),
            )
        )
    if len(results.conflict) > 1:
        blocks.append(
            Picture(
                "conflict",
                "Sign conflict between tasks",
                "Of the entries that are not zero in both task vectors, the share in percent whose signs "
                f"differ; 50 is what chance gives. {seed}",
                "Heat map of the share of entries whose signs differ, task by task, its number in every cell.",
                partial(drawings.conflict, results),
            )
        )
    return tuple(blocks)


def _record(results: BenchmarkResults) -> tuple[Block, ...]:
    record = results.record
    rows = [(name, plain(record[name])) for name in ("command", "date", "hardware") if name in record]
    if record.get("commit"):
        changed = "" if record.get("clean") else ", and changes that were not committed"
        rows.append(("commit", f"{record['commit']}{changed}"))
    if "seconds" in record:
        rows.append(("time", _duration(record["seconds"])))
    rows += [("encoder", results.encoder), ("seeds", ", ".join(map(str, results.seeds)))]
    if record.get("published"):
        rows += [(file, text) for file, text in handed_out(results).items()]
    grids = [_pairs_of("How the numbers came about", rows)]
    titles = {"versions": "Versions", "settings": "Settings", "hashes": "SHA-256 of the input files"}
    grids += [_pairs_of(title, _flat(record[name])) for name, title in titles.items() if record.get(name)]
    if results.images:
        splits = list(results.images)
        counts = dict.fromkeys(name for split in splits for name in results.images[split])
        lines = [
            Line(name, tuple(plain(results.images[split].get(name)) for split in splits)) for name in counts
        ]
        grids.append(Grid("", "Images", "set", tuple(map(Column, splits)), tuple(lines)))
    return (
        "All numbers are in results.json, the tables in the CSV files and the figures in the SVG files "
        "beside this report.",
        Details("Command, versions, settings, hashes, images", tuple(grids)),
    )


def _pairs_of(title: str, rows: list[tuple[str, str]]) -> Grid:
    return Grid("", title, "what", (Column("value"),), tuple(Line(name, (value,)) for name, value in rows))


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as a line each: ``models.encoder``."""
    if not isinstance(value, Mapping) or not value:
        return [(name, plain(value) or "none")]
    return [
        row for key, inner in value.items() for row in _flat(inner, f"{name}.{key}" if name else str(key))
    ]


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{seconds:.1f} s"
