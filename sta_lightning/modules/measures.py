"""What an evaluation may measure of a task beside its accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from sta_lightning.engine.metrics import MetricName
from sta_lightning.errors import StaError, listed
from sta_lightning.report.heat import heat_figure

_ROWS = 40  # of a figure that can be read


class Measures(nn.Module):
    """The metrics that were asked for of one task, of torchmetrics.

    ``macro`` is the mean of the classes' accuracies (what is reported of Oxford Pets and
    Flowers-102), logged as ``macro_acc``; ``top5`` the share of samples whose label is among the
    five largest logits, ``top5_acc``; ``per_class`` the accuracy of every class, ``acc/<class>``;
    ``confusion`` a figure for TensorBoard, the percentages of every class (row) that are taken for
    each (column). Accuracies are shares from 0 to 1.

    Args:
        asked: Which.
        class_names: The classes, in label order.

    Raises:
        StaError: There is no such metric.
    """

    def __init__(self, asked: Sequence[str], class_names: Sequence[str]) -> None:
        super().__init__()
        check_metrics(asked)
        self._classes, count = [name.replace("/", "_") for name in class_names], len(class_names)
        made: dict[str, Metric] = {}
        for name in asked:
            if name == "confusion":
                made[name] = MulticlassConfusionMatrix(count)
            else:
                kinds: dict[str, dict[str, Any]] = {
                    "macro": {"average": "macro"},
                    "top5": {"average": "micro", "top_k": min(5, count)},
                    "per_class": {"average": None},
                }
                made[name] = MulticlassAccuracy(count, **kinds[name])
        self.metrics = nn.ModuleDict(made)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits ``[B, C]``, labels ``[B]``; B may be 0."""
        if len(labels):  # torchmetrics refuses an empty batch
            for metric in self.metrics.values():
                cast(Metric, metric).update(logits, labels)

    def log(self, module: LightningModule, place: str) -> None:
        """Log what has been counted on all processes, under ``place``; the counts begin anew."""
        for name, value in self._values().items():
            if name == "confusion":
                self._draw(module, f"{place}/confusion", value)
                continue
            for tag, number in zip(self._tags(name), value.reshape(-1), strict=True):
                # The same on every process: a maximum leaves it so, to the bit.
                module.log(f"{place}/{tag}", number, sync_dist=True, reduce_fx="max")

    def tags(self) -> list[str]:
        """The names under which numbers are logged, without the place."""
        return [tag for name in self.metrics for tag in self._tags(name)]

    def _tags(self, name: str) -> list[str]:
        several = {"confusion": [], "per_class": [f"acc/{known}" for known in self._classes]}
        return several.get(name, [f"{name}_acc"])

    def _values(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with warnings.catch_warnings():
            # A process may have had nothing but repetitions.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            for name, metric in self.metrics.items():
                found[name] = cast(Metric, metric).compute()
                cast(Metric, metric).reset()
        return found

    def _draw(self, module: LightningModule, tag: str, counts: Tensor) -> None:
        trainer: Any = module.trainer
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not trainer.is_global_zero or not boards or trainer.sanity_checking or trainer.fast_dev_run:
            return
        counts = counts.cpu()
        shares = 100 * counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
        # Of many classes those that are recognised worst.
        shown = torch.argsort(shares.diagonal())[:_ROWS].sort().values if len(shares) > _ROWS else None
        places = list(range(len(shares))) if shown is None else shown.tolist()
        names = [self._classes[place] for place in places]
        title = "Taken for, % of each class"
        if shown is not None:
            title += f" ({_ROWS} of {len(shares)} classes, the least recognised)"
        numbers = shares[places][:, places].tolist()
        for board in boards:
            figure = heat_figure(names, names, numbers, title=title)
            board.experiment.add_figure(tag, figure, trainer.global_step, close=True)


def check_metrics(asked: Sequence[str]) -> None:
    """Refuse metrics that there are not.

    Raises:
        StaError: It names those that there are.
    """
    known = get_args(MetricName)
    if unknown := [name for name in asked if name not in known]:
        raise StaError(f"metrics has {listed(unknown)}; choose from {listed(known)}.")
