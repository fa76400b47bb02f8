"""Accuracy of one model on several tasks, through ``Trainer.test``, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sta_lightning.experiment.images import EvaluationData
from sta_lightning.experiment.progress import EvaluationBar
from sta_lightning.experiment.suite import Suite
from sta_lightning.modules.evaluation import MultiTaskEvaluation


class RecordCorrect(Callback):
    """Remember for every test image whether it was classified rightly.

    Two methods see the same images; only image by image can their difference be told from chance.
    """

    def __init__(self) -> None:
        self.correct: list[list[Tensor]] = []
        self._logits: Tensor | None = None
        self._hooks: list[RemovableHandle] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the heads' outputs."""
        loaders = cast(list[Any], trainer.test_dataloaders)
        self.correct = [[] for _ in loaders]
        heads = cast(nn.ModuleDict, pl_module.heads)
        self._hooks = [head.register_forward_hook(self._keep) for head in heads.values()]

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Compare the last outputs with the labels."""
        assert self._logits is not None
        self.correct[dataloader_idx].append((self._logits.argmax(dim=-1) == batch[1]).cpu())
        self._logits = None

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._logits = output


def evaluate(
    suite: Suite,
    module: MultiTaskEvaluation,
    data: EvaluationData,
    *,
    label: str,
    runs: tuple[str, str, str] | None = None,
) -> dict[str, Any]:
    """Test a model on every loader of ``data``.

    Args:
        suite: the run's settings.
        module: what is tested.
        data: where it is tested.
        label: what the progress bar says.
        runs: folder, name and version of the TensorBoard and CSV run; ``None`` logs nothing.

    Returns:
        ``accuracy``: task -> percent (the control under its own name), and ``correct``: task -> one
            bit per image.
    """
    loggers: list[Logger] = []
    if runs is not None:
        folder, name, version = runs
        loggers = [
            TensorBoardLogger(folder, name=name, version=version, default_hp_metric=False),
            CSVLogger(folder, name=name, version=version),
        ]
    record = RecordCorrect()
    trainer = Trainer(
        accelerator=suite.settings.accelerator,
        devices=1,
        logger=loggers or False,
        callbacks=[record, EvaluationBar(label)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.test(module, datamodule=data, verbose=False)
    accuracy: dict[str, float] = {}
    correct: dict[str, str] = {}
    for name, parts in zip(data.task_names, record.correct, strict=True):
        accuracy[name] = 100 * float(trainer.callback_metrics[f"test/{module.tag(name)}/acc"])
        bits = torch.cat(parts)
        assert len(bits) == data.counts[name]
        correct[name] = pack(bits)
    return {"accuracy": accuracy, "correct": correct, "images": data.counts}


def pack(correct: Tensor) -> str:
    """A vector of truth values as ``count:hexadecimal``, eight values in two digits."""
    bits = np.packbits(correct.numpy().astype(bool))
    return f"{len(correct)}:{bits.tobytes().hex()}"


def unpack(text: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """What :func:`pack` packed."""
    count, digits = text.split(":")
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=int(count))
    return bits.astype(bool)


def unpack_all(correct: Mapping[str, str]) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Task -> truth values, one per image."""
    return {name: unpack(text) for name, text in correct.items()}
