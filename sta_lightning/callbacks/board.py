"""What a merge leaves in the loggers besides accuracies."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from sta_lightning.arithmetic.run import Kept
from sta_lightning.report.selection import Selection, selection_figure

_LAYOUT = {
    "accuracy": {
        "tasks": ["Multiline", [r"(val|test)/.*acc"]],
        "control": ["Multiline", [r"(val|test)/control.*acc"]],
    }
}


class MergeBoard(Callback):
    """Log what a merged encoder is made of, once its test is over.

    The evaluation modules attach it by themselves.

    Every logger gets ``selection/<task>/<tensor>`` (share of the task vector's entries kept, 0 to
    1) and ``change/…`` (size of the change from the pretrained weights). A TensorBoardLogger gets
    besides: the settings with the result ``hp/…`` in HPARAMS, a figure of the shares kept per layer
    (the paper's Fig. 4), a table of them, and the accuracies on one chart.
    """

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log to every logger of the trainer, on the first process."""
        if not trainer.is_global_zero or not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        merged = getattr(pl_module, "merged", None)
        kept: Kept = {} if merged is None else merged.kept
        scalars = {f"selection/{task}/{name}": x for name, row in kept.items() for task, x in row.items()}
        if merged is not None:
            scalars |= {f"change/{what}": size for what, size in getattr(pl_module, "change", {}).items()}
        settings: dict[str, Any] = getattr(pl_module, "describe", dict)()
        results = {tag: float(x) for tag, x in trainer.callback_metrics.items() if tag.startswith("hp/")}
        for logger in trainer.loggers:
            if scalars:
                logger.log_metrics(scalars, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                # HPARAMS shows a run only if its metrics come with the settings.
                logger.log_hyperparams(settings, results)
                _draw(logger, kept, trainer.global_step)
            else:
                logger.log_hyperparams(settings)


def _draw(logger: TensorBoardLogger, kept: Kept, step: int) -> None:
    board = logger.experiment
    board.add_custom_scalars(_LAYOUT)
    if not kept:
        return
    selection = Selection(kept)
    board.add_text("selection/table", selection.grid().markdown(), step)
    if selection.main_kinds():
        figure = selection_figure(selection, title="Share of entries kept, by layer")
        board.add_figure("selection/layers", figure, step, close=True)
