"""A benchmark in TensorBoard: its rows as runs with settings, its sweeps as curves, its figures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from sta_lightning.benchmark.report.curves import VARIED, symbol
from sta_lightning.benchmark.report.document import describe
from sta_lightning.benchmark.results import BenchmarkResults, ForgettingResult, Row
from sta_lightning.callbacks.board import RESULTS, log_settings
from sta_lightning.report.document import Document, Section, markdown
from sta_lightning.report.grid import Grid

_AVERAGE, _TARGET, _CONTROL = RESULTS
# TensorBoard's steps are whole numbers: these settings are multiplied by 100.
_SHARES = ("p", "scale")


def write_board(results: BenchmarkResults, folder: Path) -> None:
    """Write a benchmark's runs of TensorBoard, in place of those of an earlier one.

    ``report`` has the figures, the report's tables and the command; ``fusion/…`` and
    ``forgetting/…`` a run for each row and seed, entered in HPARAMS; ``sweep/…`` a curve for each
    method and seed, whose step is what is varied (100 p, 100 λ, 100 γ, samples, tasks). Accuracies
    are shares from 0 to 1.
    """
    shutil.rmtree(folder, ignore_errors=True)
    document = describe(results)
    with _run(folder / "report") as writer:
        for number, picture in enumerate(document.pictures(), 1):
            # TensorBoard sorts by name: the report's order is in it.
            writer.add_figure(f"figures/{number:02}_{picture.name}", picture.draw(), close=True)
        writer.add_text("report", markdown(_in_words(document)))
        writer.add_text("command", f"`{results.record.get('command', '')}`")
    for row in results.fusion:
        with _entered(results, folder, "fusion", row, row.chosen) as writer:
            writer.add_scalar(_AVERAGE, row.average / 100, 0)
            for task, accuracy in row.accuracy.items():
                writer.add_scalar(f"task/{task}", accuracy / 100, 0)
    forgotten: dict[tuple[str, str, int], list[ForgettingResult]] = {}
    for each in results.forgetting:
        forgotten.setdefault((*each.run, each.seed), []).append(each)
    for rows in forgotten.values():
        # A tuned setting is each task's own.
        shared = {
            key: value
            for key, value in rows[0].chosen.items()
            if all(r.chosen.get(key) == value for r in rows)
        }
        with _entered(results, folder, "forgetting", rows[0], shared) as writer:
            writer.add_scalar(_TARGET, fmean(row.target for row in rows) / 100, 0)
            writer.add_scalar(_CONTROL, fmean(row.control for row in rows) / 100, 0)
    _sweeps(results, folder / "sweep")


def _sweeps(results: BenchmarkResults, folder: Path) -> None:
    curves: dict[tuple[str, str, int], list[tuple[float, Mapping[str, float]]]] = {}
    for point in results.curves:
        if point.curve in VARIED:
            name = f"100 {VARIED[point.curve].symbol}" if point.curve in _SHARES else point.curve
            key = (point.curve, point.method, point.seed)
            curves.setdefault(key, []).append((point.x, {f"average against {name}": point.average}))
    for each in results.trade_off:
        name = f"100 {symbol(results, each.method)}"
        both = {f"target against {name}": each.target, f"control against {name}": each.control}
        curves.setdefault(("trade_off", each.method, each.seed), []).append((each.x, both))
    for (curve, method, seed), points in curves.items():
        factor = 100 if curve in (*_SHARES, "trade_off") else 1
        with _run(folder / curve / method / f"seed_{seed}") as writer:
            for x, found in sorted(points, key=lambda point: point[0]):
                for tag, accuracy in found.items():
                    writer.add_scalar(f"sweep/{tag}", accuracy / 100, round(factor * x))


@contextmanager
def _entered(
    results: BenchmarkResults, folder: Path, kind: str, row: Row, chosen: Mapping[str, Any]
) -> Iterator[SummaryWriter]:
    name = f"{kind}/{row.method}_{row.setting}/seed_{row.seed}"
    with _run(folder / name) as writer:
        label = results.method(row.method).label
        own = {"method": label, "seed": row.seed, "kind": kind, "setting": row.setting, **chosen}
        log_settings(writer, own, name)
        yield writer


@contextmanager
def _run(folder: Path) -> Iterator[SummaryWriter]:
    writer = SummaryWriter(str(folder))
    try:
        yield writer
    finally:
        writer.close()


def _in_words(document: Document) -> Document:
    """What TensorBoard can show of a report as text: paragraphs and tables."""
    sections = (
        Section(each.key, each.title, tuple(block for block in each.blocks if isinstance(block, (str, Grid))))
        for each in document.sections
    )
    return replace(document, sections=tuple(sections))
