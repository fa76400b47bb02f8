"""A benchmark from its settings to its report."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from sta_lightning.arithmetic import MergeMethod
from sta_lightning.benchmark.cells import Cell, Found
from sta_lightning.benchmark.checks import check_settings
from sta_lightning.benchmark.entries import control_wanted, method_info, needs_no_coefficient, references
from sta_lightning.benchmark.evaluation import threads, unpack
from sta_lightning.benchmark.executor import Done, run_cells, unfinished
from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.kinds import every_seed
from sta_lightning.benchmark.plan import described, images_per_second, plan
from sta_lightning.benchmark.progress import quiet, say
from sta_lightning.benchmark.record import record
from sta_lightning.benchmark.report import console, handed_out, write_board, write_report
from sta_lightning.benchmark.results import (
    FINE_TUNED,
    PRETRAINED,
    ZERO_SHOT,
    BenchmarkResults,
    MethodInfo,
    PairedDifference,
    TradeOffPoint,
)
from sta_lightning.benchmark.settings import BEST, BenchmarkSettings, expand
from sta_lightning.benchmark.statistics import paired_difference
from sta_lightning.benchmark.steps import write_text
from sta_lightning.errors import StaError
from sta_lightning.weights.atomic import atomic_path


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
    given, settings = settings, expand(settings)
    check_settings(settings)
    output = Path(settings.output)
    with interruptible(output):
        suite = Suite(settings.models)
        with quiet():
            suite.open_all(spared=bool(control_wanted(settings)))
        cells = plan(settings)
        say(
            f"{len(suite.tasks)} tasks, control {suite.control}, encoder {settings.models.encoder}; "
            f"{len(cells)} cells; everything goes to {output}"
        )
        if force:
            # Before the processes begin: each would compute again what another one has just
            # computed.
            for seed in settings.seeds:
                shutil.rmtree(output / f"seed_{seed}" / "steps", ignore_errors=True)
        results = assembled(settings, cells, run_cells(settings, cells))
        # A report has the settings as they were given: a variable, and not what it is on a machine.
        told = {**record(given), **results.record, "published": _publish(settings, results)}
        results = replace(results, record=told)
        write_text(output / "results.json", json.dumps(results.to_json(), indent=1) + "\n")
        report = write_report(results, output)
        write_board(results, output / "tensorboard" / "benchmark")
    say(f"\n{console(results)}\n")
    say(f"Report: {report}")
    say(f"TensorBoard: tensorboard --logdir {shlex.quote(str(output / 'tensorboard'))}")
    for file, text in handed_out(results).items():
        say(f"{output / file}: {text}")
    return results


@contextmanager
def interruptible(output: Path) -> Iterator[None]:
    """Turn any form of Ctrl+C into one line and a KeyboardInterrupt."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning answers Ctrl+C inside fit with an orderly end, SystemExit, and a deaf SIGINT.
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        say(f"\nInterrupted. What is done is kept in {output}; the same command goes on from there.")
        raise KeyboardInterrupt from stop


def dry_run(settings: BenchmarkSettings) -> str:
    """The plan as text: what is done, what is left, and how long that is expected to take."""
    settings = expand(settings)
    check_settings(settings)
    with quiet():
        cells = plan(settings)
        waiting = unfinished(settings, cells)
        rate: float | None = None
        try:
            rate = images_per_second(settings)
            note = (
                f"Expected from {rate:.0f} images a second and process, measured now, with "
                f"{settings.devices} processes of {settings.threads} threads."
            )
        except StaError as error:
            note = f"The time is not known: {error}"
    return f"{described(settings, cells, waiting, rate)}\n{note}"


def assembled(
    settings: BenchmarkSettings, cells: Sequence[Cell], done: Mapping[str, Done]
) -> BenchmarkResults:
    """All that the cells found as one."""
    found = [done[cell.id].found for cell in cells]
    extra: dict[str, Any] = {name: value for each in found for name, value in each.extra.items()}
    suite = Suite(settings.models)
    seconds = {name: value for each in done.values() for name, value in each.seconds.items()}
    return BenchmarkResults(
        title=settings.title,
        encoder=settings.models.encoder,
        tasks=suite.tasks,
        control=suite.control,
        seeds=tuple(settings.seeds),
        methods=(
            _reference(ZERO_SHOT, "zero-shot", "the pretrained model"),
            *map(_fine_tuned, references(settings)),
            *(method_info(key, entry) for key, entry in settings.methods.items()),
        ),
        forget_methods=(
            _reference(PRETRAINED, "pretrained", "before anything is forgotten", paper=PRETRAINED),
            *(method_info(key, entry) for key, entry in settings.forget_methods.items()),
        ),
        images=extra[f"counts/{settings.seeds[0]}"],
        fusion=tuple(row for each in found for row in each.fusion),
        pairs=tuple(row for each in found for row in each.pairs),
        forgetting=tuple(row for each in found for row in each.forgetting) if settings.forget_methods else (),
        curves=tuple(point for each in found for point in each.curves),
        trade_off=_over_tasks(point for each in found for point in each.trade_off),
        kept=extra.get("kept", {}),
        conflict=extra.get("conflict", {}),
        paired=_paired(settings, found),
        record={
            "hashes": {
                name.removeprefix("hash/"): value for name, value in extra.items() if name.startswith("hash/")
            },
            "seconds": round(sum(seconds.values()), 1),
        },
    )


def _publish(settings: BenchmarkSettings, results: BenchmarkResults) -> dict[str, str]:
    """Write the fused models that are handed out; file -> key of its method."""
    free = [key for key, entry in settings.methods.items() if needs_no_coefficient(entry)]
    best = max(
        free, key=lambda key: fmean(row.average for row in results.fused(key, "published")), default=""
    )
    chosen = {file: best if key == BEST else key for file, key in settings.publish.items()}
    models = every_seed(settings)[settings.seeds[0]] if chosen else None
    for file, key in chosen.items():
        assert models is not None
        with quiet(), threads(settings.threads):
            written = models.written(key)
        with atomic_path(Path(settings.output) / file) as temporary:
            shutil.copyfile(written, temporary)
    return chosen


def _fine_tuned(key: str) -> MethodInfo:
    """The models of one kind, each on its own task; they are their own reference."""
    kind = ", ".join(key.removeprefix(FINE_TUNED).split("_")[1:])
    label = f"fine-tuned{f' ({kind})' if kind else ''}, each on its own task"
    return replace(_reference(key, label, "one model for each task"), reference=key)


def _reference(key: str, label: str, summary: str, paper: str | None = None) -> MethodInfo:
    return MethodInfo(key, label, summary, MergeMethod.data, False, "", "reference", paper)


def _paired(settings: BenchmarkSettings, found: Sequence[Found]) -> tuple[PairedDifference, ...]:
    """Every fused row against the seed's best one and against the random mask, image by image."""
    averages = {(*row.run, row.seed): row.average for each in found for row in each.fusion}
    bits = {
        row: {task: unpack(text) for task, text in packed.items()}
        for each in found
        for row, packed in each.correct.items()
    }
    random = [key for key, entry in settings.methods.items() if entry.method == "random_mask"]
    pairs = []
    for row in bits:
        rivals = [other for other in bits if other[2] == row[2]]
        best = max(rivals, key=averages.__getitem__)
        for other in dict.fromkeys([best, *((key, "published", row[2]) for key in random)]):
            if other != row:
                pairs.append(PairedDifference(*row, *other[:2], *paired_difference(bits[row], bits[other])))
    return tuple(pairs)


def _over_tasks(points: Iterable[TradeOffPoint]) -> tuple[TradeOffPoint, ...]:
    """Means over the tasks of what was measured for each of them."""
    groups: dict[tuple[str, int, float], list[TradeOffPoint]] = defaultdict(list)
    for point in points:
        groups[point.method, point.seed, point.x].append(point)
    return tuple(
        TradeOffPoint(
            method, seed, x, fmean(each.target for each in group), fmean(each.control for each in group)
        )
        for (method, seed, x), group in groups.items()
    )
