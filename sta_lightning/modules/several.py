from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from sta_lightning.engine.metrics import MetricName
from sta_lightning.errors import StaError
from sta_lightning.modules.evaluation import MultiTaskEvaluation, module_key
from sta_lightning.modules.parts import QUIET, Weights, encoder_with


class MultiModelEvaluation(MultiTaskEvaluation):
    """Evaluate several encoders on several tasks and a control set, each batch read once for all.

    The numbers are those of :class:`MultiTaskEvaluation` with each encoder by itself. Logs
    ``test/<model>/<task>/acc`` for every model and task, ``test/<model>/avg_acc``, and
    ``test/<model>/control/<name>/acc``; under ``validate`` with ``val/``.

    All encoders are held at once; to bound the memory, give a part of them to each of several
    evaluations, as :func:`evaluate_many` does.

    Args:
        models: Files with the encoders to evaluate, by the names under which they are logged (in
            Python also tensors by name, which are used as they are, not copied).
        encoder: Their architecture; see :class:`MultiTaskEvaluation`, as for the following.
        pretrained: The pretrained weights, of which the heads are made.
        heads: Head files by task name.
        image_size: Side of the input in pixels.
        metrics: What is measured beside the accuracies.

    Attributes:
        accuracy: After an evaluation, by model and by task: a share from 0 to 1, the same on every
            process.

    Raises:
        StaError: There is no model, a name cannot be logged, or the weights do not fit.
    """

    def __init__(
        self,
        models: dict[str, Any],
        encoder: str = "miniature",
        pretrained: str | None = None,
        heads: dict[str, str] | None = None,
        image_size: int | None = None,
        metrics: list[MetricName] | None = None,
    ) -> None:
        super().__init__(encoder, pretrained, None, heads, image_size, metrics)
        if not models:
            raise StaError("models names nothing to evaluate: give one or more files, each by a name.")
        if wrong := [name for name in models if not name or "/" in name]:
            raise StaError(f"A model was named {wrong[0]!r}: use a name without slashes.")
        self._models: dict[str, Weights] = dict(models)
        self.encoders = nn.ModuleDict()
        self.accuracy: dict[str, dict[str, float]] = {}

    @override
    def describe(self) -> dict[str, Any]:
        return {"encoder": self._encoder_name, "models": ", ".join(self._models)}

    @override
    def counted(self) -> list[tuple[str, ...]]:
        """Every pair of model and task."""
        return [(model, task) for model in self._models for task in self._names]

    @override
    def load(self) -> None:
        """Load the encoders."""
        for model, weights in self._models.items():
            if module_key(model) not in self.encoders:
                encoder = encoder_with(self.original(), weights, f"model {model!r}")
                self.encoders[module_key(model)] = encoder

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[M, B, D]``, model by model, of normalised images ``[B, 3, S, S]``."""
        return torch.stack([encoder(images) for encoder in self.encoders.values()])

    @override
    def count(self, name: str, images: Tensor, labels: Tensor, count: int) -> None:
        head = self.heads[module_key(name)]
        for model in self._models:
            logits = head(self.encoders[module_key(model)](images))
            self.add((model, name), logits[:count], labels[:count])

    @override
    def on_validation_epoch_end(self) -> None:
        self.accuracy = {model: self._log_accuracies(f"val/{model}", model) for model in self._models}

    @override
    def on_test_epoch_end(self) -> None:
        self.accuracy = {model: self._log_accuracies(f"test/{model}", model) for model in self._models}


def evaluate_many(
    models: Mapping[str, Weights],
    datamodule: LightningDataModule,
    *,
    encoder: str = "miniature",
    pretrained: str | None = None,
    heads: Mapping[str, str] | None = None,
    image_size: int | None = None,
    group: int | None = None,
    split: Literal["test", "validation"] = "test",
    trainer: Trainer | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate several encoders of one architecture, each batch read once for a group of them.

    Args:
        models: Weights files, or tensors by name, by the models' names.
        datamodule: A ``MultiTaskDataModule``, or a ``TaskDataModule`` for one task.
        encoder: See :class:`MultiTaskEvaluation`, as for the next three.
        pretrained: The pretrained weights.
        heads: Head files by task name.
        image_size: Side of the input.
        group: How many encoders are in memory at once; the images are read once for every group.
            All if not given.
        split: Which images.
        trainer: On any number of devices; one device, without loggers and bar, if not given.

    Returns:
        Accuracy from 0 to 1 by model and task (the control under its own name), the same as of one
        model at a time.

    Raises:
        StaError: There is nothing to evaluate, ``group`` is less than 1, or weights do not fit.
    """
    names: Sequence[str] = list(models)
    size = len(names) if group is None else group
    if size < 1:
        raise StaError(f"{len(names)} models in groups of {group} were asked for: give 1 or more of both.")
    if split not in ("test", "validation"):
        raise StaError(f"split={split!r} was asked for; choose test or validation.")
    trainer = trainer or Trainer(devices=1, **QUIET)
    evaluate = trainer.test if split == "test" else trainer.validate
    found: dict[str, dict[str, float]] = {}
    made = nn.ModuleDict()
    for first in range(0, len(names), size):
        part = {name: models[name] for name in names[first : first + size]}
        module = MultiModelEvaluation(part, encoder, pretrained, dict(heads or {}), image_size)
        module.heads = made
        evaluate(module, datamodule=datamodule, verbose=False)
        made = module.heads
        found |= module.accuracy
    return found
