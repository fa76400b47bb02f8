"""A benchmark from its settings to its report."""

from __future__ import annotations

import datetime
import json
import shlex
import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from sta_lightning.benchmark.cells import Cell
from sta_lightning.benchmark.context import Context
from sta_lightning.benchmark.entries import MethodEntry
from sta_lightning.benchmark.kinds import FINE_TUNED, PRETRAINED, ZERO_SHOT
from sta_lightning.benchmark.plan import described, images_per_second, plan
from sta_lightning.benchmark.rehearsal import Rehearsal, unfinished
from sta_lightning.benchmark.report import figures, write_report
from sta_lightning.benchmark.results import BenchmarkResults, MethodInfo, TradeOffPoint
from sta_lightning.benchmark.schedule import Done, run_cells
from sta_lightning.benchmark.settings import BenchmarkSettings, check_benchmark, expand_benchmark
from sta_lightning.errors import StaError
from sta_lightning.experiment.chain import interruptible
from sta_lightning.experiment.environment import hardware, versions
from sta_lightning.experiment.models import clear_run
from sta_lightning.experiment.progress import pulse, quiet, say
from sta_lightning.experiment.steps import write_text
from sta_lightning.experiment.suite import Suite


def run_benchmark(settings: BenchmarkSettings, *, force: bool = False) -> BenchmarkResults:
    """Compute what is left of a benchmark, and write its report.

    Args:
        settings: what is compared on what.
        force: compute everything again.

    Returns:
        Every number.

    Raises:
        StaError: when the settings cannot make a run, or files are missing or do not fit.
        KeyboardInterrupt: after a line that says how to go on.
    """
    settings = expand_benchmark(settings)
    check_benchmark(settings)
    output = Path(settings.output)
    with interruptible(output):
        with quiet():
            Suite(settings.models).open_all()
        cells = plan(settings)
        say(
            f"{len(cells)} cells, {len(settings.seeds)} seeds, {settings.devices} processes of {settings.threads} "
            f"threads; everything goes to {output}"
        )
        if force:
            # Before the processes begin: each would compute again what another one has just
            # computed.
            for seed in settings.seeds:
                shutil.rmtree(output / f"seed_{seed}" / "steps", ignore_errors=True)
        done = run_cells(settings, cells)
        results = assembled(settings, cells, done)
        with pulse("write the report"):
            write_text(output / "results.json", json.dumps(results.to_json(), indent=1) + "\n")
            report = write_report(results, output)
            _draw(results, output)
    say(f"Report: {report}")
    say(f"TensorBoard: tensorboard --logdir {shlex.quote(str(output / 'tensorboard'))}")
    return results


def dry_run(settings: BenchmarkSettings) -> str:
    """The plan as text: what is done, what is left, and how long that is expected to take."""
    settings = expand_benchmark(settings)
    check_benchmark(settings)
    with quiet():
        cells = plan(settings)
        waiting = unfinished(Context(settings, Rehearsal), cells)
        note = ""
        try:
            rate: float | None = images_per_second(settings)
        except StaError as error:
            rate, note = None, f"\nThe time is not known: {error}"
    table = described(settings, cells, waiting, rate)
    if rate is not None:
        note = (
            f"\nExpected from {rate:.0f} images a second and process, measured now, with {settings.devices} processes of "
            f"{settings.threads} threads."
        )
    return table + note


def assembled(
    settings: BenchmarkSettings, cells: Sequence[Cell], done: Mapping[str, Done]
) -> BenchmarkResults:
    """All that the cells found as one."""
    found = [done[cell.id].found for cell in cells]
    extra: dict[str, Any] = {name: value for one in found for name, value in one.extra}
    suite = Suite(settings.models)
    seconds = {name: value for one in done.values() for name, value in one.seconds.items()}
    return BenchmarkResults(
        title=settings.title,
        encoder=settings.models.encoder,
        tasks=suite.tasks,
        control=suite.control,
        seeds=tuple(settings.seeds),
        methods=(
            _reference(ZERO_SHOT, "zero-shot", "the pretrained model"),
            _reference(FINE_TUNED, "fine-tuned, each on its own task", "one model for each task"),
            *_infos(settings.methods, forgetting=False),
        ),
        forget_methods=(
            _reference(PRETRAINED, "pretrained", "nothing forgotten", paper=PRETRAINED),
            *_infos(settings.forget_methods, forgetting=True),
        ),
        images=extra[f"counts/{settings.seeds[0]}"],
        fusion=tuple(row for one in found for row in one.fusion),
        pairs=tuple(row for one in found for row in one.pairs),
        forgetting=tuple(row for one in found for row in one.forgetting) if settings.forget_methods else (),
        curves=tuple(point for one in found for point in one.curves),
        trade_off=_over_tasks([point for one in found for point in one.trade_off]),
        kept=extra.get("kept", {}),
        conflict=extra.get("conflict", {}),
        record={
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "hardware": hardware(settings.models.accelerator, settings.threads)
            + f" in each of {settings.devices} processes",
            "versions": versions(),
            "settings": settings.to_json(),
            "hashes": {
                name.removeprefix("hash/"): value for name, value in extra.items() if name.startswith("hash/")
            },
            "seconds": round(sum(seconds.values()), 1),
        },
    )


def _infos(table: Mapping[str, MethodEntry], *, forgetting: bool) -> list[MethodInfo]:
    return [entry.info(key, forgetting=forgetting) for key, entry in table.items()]


def _reference(key: str, label: str, summary: str, paper: str | None = None) -> MethodInfo:
    return MethodInfo(key, label, summary, "nothing", False, "", "reference", paper)


def _over_tasks(points: Sequence[tuple[str, TradeOffPoint]]) -> tuple[TradeOffPoint, ...]:
    """Means over the tasks of what was measured for each of them."""
    groups: dict[tuple[str, int, float], list[TradeOffPoint]] = defaultdict(list)
    for _, point in points:
        groups[point.method, point.seed, point.x].append(point)
    return tuple(
        TradeOffPoint(
            method, seed, x, fmean(one.target for one in group), fmean(one.control for one in group)
        )
        for (method, seed, x), group in groups.items()
    )


def _draw(results: BenchmarkResults, output: Path) -> None:
    """Every figure and the averages in TensorBoard."""
    clear_run(output / "tensorboard", "benchmark", "report")
    logger = TensorBoardLogger(output / "tensorboard", name="benchmark", version="report")
    for name, figure in figures(results).items():
        logger.experiment.add_figure(f"benchmark/{name}", figure, close=True)
    for row in results.fusion:
        tag = f"seed_{row.seed}/{row.method}" + ("_tuned" if row.setting == "tuned" else "")
        logger.experiment.add_scalar(f"fusion/{tag}/avg_acc", row.average / 100)
    logger.finalize("success")
