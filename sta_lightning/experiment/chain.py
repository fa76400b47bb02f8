"""The chain from the first fine-tuning to the report, for any encoder and suite."""

from __future__ import annotations

import datetime
import json
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng

from sta_lightning.experiment.comparison import FUSED, Comparison, Fusion
from sta_lightning.experiment.document import (
    REPORT_FILES,
    forgetting_table,
    fusion_table,
    summary,
    write_report,
)
from sta_lightning.experiment.environment import hardware, versions
from sta_lightning.experiment.models import Models
from sta_lightning.experiment.progress import StepReporter, quiet, say
from sta_lightning.experiment.results import ExperimentResult, ForgettingRow, FusionRow, Results
from sta_lightning.experiment.settings import ExperimentSettings, check_settings, expand_settings
from sta_lightning.experiment.steps import StepRunner
from sta_lightning.experiment.suite import Suite
from sta_lightning.weights.atomic import atomic_path

FORGETTING_METHODS = ("task_arithmetic", "random_mask", "sta")


def run_chain(settings: ExperimentSettings, *, force: bool = False) -> ExperimentResult:
    """See :func:`sta_lightning.experiment.run`."""
    settings = expand_settings(settings)
    check_settings(settings)
    output = Path(settings.output)
    reporter = StepReporter()
    with interruptible(output), quiet(), isolate_rng():
        suite = Suite(settings)
        runner = StepRunner(output / "steps", force=force, notice=reporter, before_work=suite.open_all)
        say(
            f"{len(suite.tasks)} tasks, control {suite.control}, encoder {settings.encoder}; "
            f"everything goes to {output}"
        )
        results, fused = _results(settings, suite, runner, output)
        reporter.flush()
        return _report(settings, results, runner, output, fused)


@contextmanager
def interruptible(output: Path) -> Iterator[None]:
    """Turn any form of Ctrl+C into one line and a KeyboardInterrupt."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning answers Ctrl+C inside fit and test with an orderly end, SystemExit, and a deaf
        # SIGINT.
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        say(f"\nInterrupted. What is done is kept in {output}; the same command goes on from there.")
        raise KeyboardInterrupt from stop


def _results(
    settings: ExperimentSettings, suite: Suite, runner: StepRunner, output: Path
) -> tuple[Results, Path]:
    """Do every step and collect the numbers; also where the fused model lies."""
    models = Models(suite, runner, output / "tensorboard")
    models.prepare()
    comparison = Comparison(models, settings)
    sweep = comparison.sweep()
    scales = [point for point in sweep if point.method == "task_arithmetic"]
    grid = set(settings.scale_grid)
    # The smaller λ where two are as good: it changes the weights less.
    best = max(
        (point for point in scales if point.value in grid), key=lambda point: (point.average, -point.value)
    )
    p = settings.p

    zero_shot, zero_found = comparison.zero_shot()
    fine_tuned, _ = comparison.fine_tuned()
    rows: list[FusionRow] = [zero_shot, fine_tuned]
    rows.append(comparison.fused("average", "plain average", Fusion("average"))[0])
    for key, label, fusion in (
        (
            "task_arithmetic",
            f"task arithmetic λ={settings.scale:g}",
            Fusion("task_arithmetic", scale=settings.scale),
        ),
        (
            "task_arithmetic_best",
            f"task arithmetic λ={best.value:g} (best on validation)",
            Fusion("task_arithmetic", scale=best.value),
        ),
        ("random_mask", f"random mask p={p:g}", Fusion("random_mask", p=p)),
        ("sta_amp", f"STA Amp p={p:g}", Fusion("sta", measure="amp", p=p)),
        ("sta_lp_amp", f"STA LP+Amp p={p:g}", Fusion("sta", measure="lp+amp", p=p)),
    ):
        rows.append(comparison.fused(key, label, fusion)[0])
    sta, step = comparison.fused("sta_lp", f"STA LP p={p:g}", Fusion("sta", measure="lp", p=p))
    rows.append(sta)

    accuracy = zero_found["accuracy"]
    # The pretrained model has forgotten nothing: its numbers are those of the zero-shot row.
    pretrained = [
        ForgettingRow(task, "pretrained", accuracy[task], accuracy[suite.control]) for task in suite.tasks
    ]
    forgotten = [comparison.forget(task, method) for task in suite.tasks for method in FORGETTING_METHODS]
    results = Results(
        tasks=suite.tasks,
        control=suite.control,
        images={
            "train": models.train_images,
            "validation": comparison.validation_images,
            "test": zero_found["images"],
        },
        fusion=tuple(rows),
        forgetting=tuple(pretrained + forgotten),
        forgetting_labels={
            "pretrained": "pretrained",
            "task_arithmetic": f"task arithmetic γ={settings.forget_scale:g}",
            "random_mask": f"random mask p={p:g}",
            "sta": f"STA LP p={p:g}",
        },
        sweep=tuple(sweep),
        kept={
            tensor: {task: shares[task] for task in suite.tasks if task in shares}
            for tensor, shares in step.result["kept"].items()
        },
        best_scale=best.value,
        p=p,
    )
    return results, step.file(FUSED)


def _report(
    settings: ExperimentSettings, results: Results, runner: StepRunner, output: Path, fused: Path
) -> ExperimentResult:
    """Write the report and the fused model, and show the tables."""
    published = output / FUSED
    if not published.is_file() or runner.digest(published) != runner.digest(fused):
        with atomic_path(published) as temporary:
            shutil.copyfile(fused, temporary)
    runs = output / "tensorboard"
    where = [
        f"TensorBoard: tensorboard --logdir {shlex.quote(str(runs))}",
        f"Fused model: {published}",
    ]
    done = sum(not step.skipped for step in runner.steps)
    record = _record(settings, runner)
    report = output / "report.md"
    if done or not _is_written(output, record, results):
        closing = "\n".join(f"- {line.split(': ', 1)[0]}: `{line.split(': ', 1)[1]}`" for line in where)
        report = write_report(results, output, record, closing)
    say("")
    say(fusion_table(results).terminal())
    say(forgetting_table(results).terminal())
    say(summary(results))
    say("")
    for line in [f"Report:      {report} (with figures; tables as CSV beside it)", *where]:
        say(line)
    return ExperimentResult(
        output=output,
        report=report,
        fused=published,
        tensorboard=runs,
        results=results,
        done=done,
        skipped=len(runner.steps) - done,
    )


def _record(settings: ExperimentSettings, runner: StepRunner) -> dict[str, Any]:
    """How the numbers came about."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(settings.accelerator),
        "versions": versions(),
        "settings": settings.to_json(),
        "seconds": {step.name: round(step.seconds, 1) for step in runner.steps},
    }


def _is_written(output: Path, record: dict[str, Any], results: Results) -> bool:
    """Whether the report of these very numbers lies there already."""
    files = [output / name for name in REPORT_FILES]
    if not all(path.is_file() for path in files):
        return False
    try:
        former = json.loads((output / "results.json").read_text(encoding="utf-8"))
    except ValueError:
        return False
    now = json.loads(json.dumps({"settings": record["settings"], "results": results.to_json()}))
    return all(former.get(key) == value for key, value in now.items())
