"""The report of a run: tables, figures, and what they say in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sta_lightning.benchmark.statistics import paired_difference, verdict
from sta_lightning.experiment.evaluation import unpack_all
from sta_lightning.experiment.progress import pulse
from sta_lightning.experiment.results import Results
from sta_lightning.experiment.steps import write_text
from sta_lightning.report import (
    Curve,
    MethodResult,
    Row,
    Selection,
    Table,
    forgetting_figure,
    fusion_figure,
    save_png,
    selection_figure,
    sweep_figure,
)

REPORT_FILES = (
    "report.md",
    "results.json",
    *(f"{name}.csv" for name in ("fusion", "forgetting", "sweep", "selection")),
    *(f"{name}.png" for name in ("fusion", "forgetting", "sweep", "selection")),
)
SWEEP_LABELS = {
    "sta": "STA LP, against p",
    "random_mask": "random mask, against p",
    "task_arithmetic": "task arithmetic, against λ",
}


def fusion_table(results: Results) -> Table:
    """The fusion table in the layout of the paper's Table 2."""
    columns = ("method", *results.tasks, "average")
    rows = [
        Row(
            row.label,
            (*(row.accuracy[task] for task in results.tasks), row.average),
            compete=not row.reference,
        )
        for row in results.fusion
    ]
    largest = max(row.error(results.images["test"]) for row in results.fusion)
    return Table(
        title="Fusion: test accuracy in percent, one model for all tasks",
        columns=columns,
        rows=tuple(rows),
        best=dict.fromkeys(columns[1:], "high"),
        note=f"Marked: the best fused model of a column. Standard error of an average: at most {largest:.1f} points. "
        f"Test images: {_counts(results.images['test'], results.tasks)}.",
    )


def forgetting_table(results: Results) -> Table:
    """The forgetting table in the layout of the paper's Table 3, with the averages in the last line."""
    methods = list(results.forgetting_labels)
    columns = ["forgotten task"]
    for method in methods:
        label = results.forgetting_labels[method]
        columns += [f"{label}: target ↓", f"{label}: control ↑"]
    by_key = {(row.task, row.method): row for row in results.forgetting}
    rows = []
    for task in results.tasks:
        values: list[float] = []
        for method in methods:
            values += [by_key[task, method].target, by_key[task, method].control]
        rows.append(Row(task, tuple(values)))
    means = [
        sum(float(row.values[column] or 0.0) for row in rows) / len(rows)
        for column in range(2 * len(methods))
    ]
    rows.append(Row("average", tuple(means)))
    images = results.images["test"]
    return Table(
        title=f"Forgetting: test accuracy in percent on the forgotten task (target, lower is better) and on "
        f"{results.control} (control, higher is better)",
        columns=tuple(columns),
        rows=tuple(rows),
        note=f"Control images: {images[results.control]}.",
    )


def sweep_table(results: Results) -> Table:
    """Validation accuracy at every p and λ."""
    rows = [
        Row(
            point.method,
            (point.setting, point.value, *(point.accuracy[task] for task in results.tasks), point.average),
        )
        for point in results.sweep
    ]
    return Table(
        title="Validation accuracy in percent against p and λ",
        columns=("method", "setting", "value", *results.tasks, "average"),
        rows=tuple(rows),
    )


def summary(results: Results) -> str:
    """What the run says, in sentences: the best method and STA LP against its two controls."""
    fused = [row for row in results.fusion if not row.reference]
    best = max(fused, key=lambda row: row.average)
    lines = [
        f"Best fused model: {best.label}, {best.average:.1f}% on average "
        f"(zero-shot {results.row('zero_shot').average:.1f}%, fine-tuned models {results.row('fine_tuned').average:.1f}%)."
    ]
    sta = results.row("sta_lp")
    for key in ("random_mask", "task_arithmetic_best"):
        other = results.row(key)
        difference, error = paired_difference(unpack_all(sta.correct), unpack_all(other.correct))
        side = "above" if difference >= 0 else "below"
        lines.append(
            f"STA LP lies {abs(difference):.1f} points {side} {other.label} "
            f"(standard error {error:.1f}, on the same test images; {verdict(difference, error)})."
        )
    table = forgetting_table(results)
    average = table.rows[-1].values
    methods = list(results.forgetting_labels)
    parts = []
    for index, method in enumerate(methods):
        parts.append(
            f"{results.forgetting_labels[method]} {average[2 * index]:.1f}% / {average[2 * index + 1]:.1f}%"
        )
    lines.append("Forgetting, average target / control: " + ", ".join(parts) + ".")
    return "\n".join(lines)


def write_figures(results: Results, output: Path, *, encoder: str) -> list[Path]:
    """Draw the four figures and return their paths."""
    images = results.images["test"]
    fusion = fusion_figure(
        [MethodResult(row.label, row.accuracy, row.error(images), row.reference) for row in results.fusion],
        title=f"{len(results.tasks)} fine-tuned models fused into one ({encoder})",
    )
    curves = []
    for method, label in SWEEP_LABELS.items():
        points = sorted(
            (point for point in results.sweep if point.method == method), key=lambda point: point.value
        )
        if not points:
            continue
        masked = points[0].setting == "p"
        curves.append(
            Curve(
                label,
                [point.value for point in points],
                [point.average for point in points],
                steps=masked,
                chosen=results.p if masked else results.best_scale,
            )
        )
    levels = {
        label: point.average
        for key, label in (("zero_shot", "zero-shot"), ("average", "plain average"))
        for point in results.sweep
        if point.method == key
    }
    sweep = sweep_figure(
        curves,
        levels,
        title=f"Fusion of {len(results.tasks)} models: accuracy against p and λ ({encoder})",
        y_label="average validation accuracy (%)",
    )
    labels = results.forgetting_labels
    by_key = {(row.task, row.method): row for row in results.forgetting}
    forgetting = forgetting_figure(
        results.tasks,
        {labels[method]: [by_key[task, method].target for task in results.tasks] for method in labels},
        {labels[method]: [by_key[task, method].control for task in results.tasks] for method in labels},
        control_name=results.control,
        title=f"The pretrained model made to forget one task ({encoder})",
    )
    selection = selection_figure(
        Selection(results.kept),
        title=f"Share of entries that STA LP keeps, p = {results.p:g} ({encoder})",
    )
    figures = {"fusion": fusion, "sweep": sweep, "forgetting": forgetting, "selection": selection}
    with pulse("draw the figures"):
        return [save_png(figure, output / f"{name}.png") for name, figure in figures.items()]


def write_report(results: Results, output: Path, record: Mapping[str, Any], closing: str) -> Path:
    """Write tables, figures, results.json and report.md; return the path of the report.

    Args:
        results: the numbers.
        output: the run's folder.
        record: how they came about: command, date, seed, versions, hardware, settings.
        closing: where the runs and the fused model lie.
    """
    encoder = str(record["settings"]["encoder"])
    write_figures(results, output, encoder=encoder)
    fusion, forgetting, sweep = fusion_table(results), forgetting_table(results), sweep_table(results)
    write_text(output / "fusion.csv", fusion.csv())
    write_text(output / "forgetting.csv", forgetting.csv())
    write_text(output / "sweep.csv", sweep.csv())
    write_text(output / "selection.csv", Selection(results.kept).csv())
    whole = {**record, "results": results.to_json()}
    write_text(output / "results.json", json.dumps(whole, indent=1) + "\n")
    text = "\n".join(
        [
            f"# Selective Task Arithmetic: {encoder}, {len(results.tasks)} tasks",
            "",
            *(f"- {line}" for line in summary(results).splitlines()),
            "",
            "## Fusion",
            "",
            fusion.markdown(),
            "![Fusion result](fusion.png)",
            "",
            f"λ = {results.best_scale:g} was the best for task arithmetic on the validation images "
            f"({_counts(results.images['validation'], results.tasks)}). The random mask keeps as many entries as STA, "
            "drawn by chance: what STA gains over it is what importance is worth.",
            "",
            "![Accuracy against p and λ](sweep.png)",
            "",
            "## Forgetting",
            "",
            forgetting.markdown(),
            "![Forgetting](forgetting.png)",
            "",
            "## What is kept",
            "",
            "![Share of entries kept per layer](selection.png)",
            "",
            "## How these numbers came about",
            "",
            f"- command: `{record['command']}`",
            f"- date: {record['date']}; seed: {record['settings']['seed']}",
            f"- hardware: {record['hardware']}",
            "- versions: " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            f"- training images: {_counts(results.images['train'], results.tasks)}",
            "- standard errors are those of the test images; one seed of fine-tuning was run, and another would differ too",
            "- all settings and numbers: results.json; the tables: fusion.csv, forgetting.csv, sweep.csv, selection.csv",
            "",
            closing,
            "",
        ]
    )
    return write_text(output / "report.md", text)


def _counts(images: Mapping[str, int], tasks: tuple[str, ...]) -> str:
    counts = {images[task] for task in tasks}
    if len(counts) == 1:
        return f"{counts.pop()} per task"
    return ", ".join(f"{task} {images[task]}" for task in tasks)
