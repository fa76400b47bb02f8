"""What a merge leaves in the loggers besides accuracies, and the one form of a run in HPARAMS."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.plugins.hparams import summary_v2 as hparams
from typing_extensions import override

from sta_lightning.arithmetic.run import Kept
from sta_lightning.report.embed import svg, svg_file
from sta_lightning.report.grid import Column, Grid, Line, Number
from sta_lightning.report.selection import Selection, selection_figure
from sta_lightning.weights.atomic import atomic_path

RESULTS = ("accuracy/average", "accuracy/target", "accuracy/control")
"""The metrics of HPARAMS, shares from 0 to 1; a run has those that it measures."""

# TensorBoard takes the columns from the first run that it finds: all runs declare the same.
_COLUMNS = ("method", "measure", "p", "scale", "seed", "settings")
_LAYOUT = {
    "accuracy": {
        "tasks": ["Multiline", [r"(val|test)/.*acc"]],
        "control": ["Multiline", [r"(val|test)/control.*acc"]],
    }
}

_LAYERS = {
    "kept": ("Share of entries kept, by layer", "entries kept (%)"),
    "foretold": ("What the merge misses of each fine-tuned layer's outputs", "error (%)"),
}


def log_settings(writer: Any, settings: Mapping[str, Any], name: str) -> None:
    """Enter a run in HPARAMS.

    The columns are method, measure, p, scale and seed; what a run has besides is one text.

    Args:
        writer: a ``SummaryWriter``, which gets the run's :data:`RESULTS` as scalars elsewhere.
        settings: by name; ``None`` is left out.
        name: of the run, which no other has.
    """
    own = {key: value for key, value in settings.items() if value is not None}
    others = ", ".join(f"{key} = {value}" for key, value in own.items() if key not in _COLUMNS)
    row = {key: own[key] for key in _COLUMNS if key in own} | ({"settings": others} if others else {})
    plain = {
        key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in row.items()
    }
    metrics = [hparams.Metric(tag, display_name=tag.split("/")[1]) for tag in RESULTS]
    for summary in (
        hparams.hparams_config_pb([hparams.HParam(column) for column in _COLUMNS], metrics),
        hparams.hparams_pb(plain, trial_id=name),
    ):
        writer.file_writer.add_summary(summary)


def command_line() -> str:
    """The command that runs, as it would be typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


class MergeBoard(Callback):
    """Log what a merged encoder is made of, once its test is over.

    The evaluation modules attach it by themselves.

    Every logger gets :data:`RESULTS` and ``change/…`` (size of the change from the pretrained
    weights), and of a merge that foretells itself ``foretold/<task>/divergence`` and
    ``…/agreement``. A TensorBoardLogger gets besides: the settings with the results in HPARAMS; of
    the shares kept a figure per layer (the paper's Fig. 4, also the file ``kept.svg``) and a
    histogram; the foretold errors of the layers likewise (``foretold.svg``); as text the accuracies
    and the command; and the accuracies on one chart. Any other logger gets both as numbers,
    ``selection/<task>/<tensor>`` and ``foretold/<task>/<tensor>``.
    """

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log to every logger of the trainer, on the first process."""
        if not trainer.is_global_zero or not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        merged = getattr(pl_module, "merged", None)
        kept: Kept = {} if merged is None else merged.kept
        change = {} if merged is None else getattr(pl_module, "change", {})
        found = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
        sizes = {f"change/{what}": size for what, size in change.items()}
        sizes |= {tag: found[tag] for tag in RESULTS if tag in found}
        foretold = getattr(pl_module, "foretold", None) or {"tasks": {}, "layers": {}}
        sizes |= {
            f"foretold/{t}/{what}": x for t, row in foretold["tasks"].items() for what, x in row.items()
        }
        layered = {"selection": kept, "foretold": foretold["layers"]}
        shares = {
            f"{what}/{task}/{name}": x
            for what, table in layered.items()
            for name, row in table.items()
            for task, x in row.items()
        }
        settings: dict[str, Any] = getattr(pl_module, "describe", dict)()
        for logger in trainer.loggers:
            board = isinstance(logger, TensorBoardLogger)
            scalars = sizes if board else sizes | shares
            if scalars:
                logger.log_metrics(scalars, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings, {})  # into its YAML file alone
                _draw(logger, settings, found, trainer.global_step)
                _draw_layers(logger, "kept", kept, trainer.global_step)
                _draw_layers(logger, "foretold", foretold["layers"], trainer.global_step)
            else:
                logger.log_hyperparams(settings)


def _draw(
    logger: TensorBoardLogger, settings: Mapping[str, Any], found: Mapping[str, float], step: int
) -> None:
    writer = logger.experiment
    log_settings(writer, {"seed": os.environ.get("PL_GLOBAL_SEED"), **settings}, str(logger.log_dir))
    writer.add_custom_scalars(_LAYOUT)
    lines = tuple(
        Line(tag[5:-4], (Number(100 * value),))
        for tag, value in found.items()
        if tag.startswith("test/") and tag.endswith("/acc")
    )
    title = f"{settings.get('method', 'evaluation')}: test accuracy in percent"
    writer.add_text("report", Grid("", title, "images", (Column("accuracy"),), lines).markdown(), step)
    writer.add_text("command", f"`{command_line()}`", step)


def _draw_layers(logger: TensorBoardLogger, name: str, table: Kept, step: int) -> None:
    """A histogram of a number per tensor and task, and a figure by layer, also as an SVG file."""
    if not table:
        return
    writer, selection = logger.experiment, Selection(table)
    writer.add_histogram(name, np.array([x for row in table.values() for x in row.values()]), step)
    if selection.main_kinds():
        title, what = _LAYERS[name]
        figure = selection_figure(selection, title=title, what=what)
        with atomic_path(Path(str(logger.log_dir)) / f"{name}.svg") as temporary:
            temporary.write_text(svg_file(svg(figure, name, title)), encoding="utf-8")
        writer.add_figure(f"{name}/layers", figure, step, close=True)
