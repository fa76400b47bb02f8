"""Fine-tuning one task: an interruption costs an epoch at most, and no bit of the result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.settings import Finetuning
from sta_lightning.callbacks import ExportWeights, SpareControl
from sta_lightning.modules import CLIPClassifier
from sta_lightning.weights.atomic import atomic_path

ENCODER = "encoder.safetensors"
RESUME_FILE = "last.ckpt"


def finetuning_name(finetuning: Finetuning) -> str:
    """What the steps and runs of fine-tunings of one kind are called."""
    return "finetune" if finetuning == "plain" else f"finetune_{finetuning}"


class ResumePoint(Checkpoint):
    """Keep one checkpoint of the last finished epoch; none when the work is done.

    A checkpoint of a finished fit would make Lightning skip the fit and with it the export of the
    weights.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless this was the last epoch."""
        if trainer.global_step < trainer.estimated_stepping_batches:
            with atomic_path(self.path) as temporary:
                trainer.save_checkpoint(temporary)


def fine_tune(
    suite: Suite,
    task: str,
    seed: int,
    head: Path,
    folder: Path,
    runs: Path,
    finetuning: Finetuning = "plain",
    gram: Path | None = None,
) -> dict[str, Any]:
    """Fine-tune the encoder on one task and export it.

    ``encoder.safetensors`` and ``head.safetensors`` go to ``folder``, and the checkpoint while it
    is unfinished; ``runs`` is the folder of the TensorBoard runs, ``head`` the file of the task's
    frozen head, and ``gram`` that of the control which a fit spares.

    Returns:
        Validation accuracy in percent and the number of images and optimiser steps.
    """
    settings, own = suite.settings, suite.settings.fine_tuning(task)
    name, linearised = finetuning_name(finetuning), finetuning == "linearised"
    data = suite.datamodule(task, seed)
    checkpoint = folder / RESUME_FILE
    resume = checkpoint if checkpoint.is_file() else None
    if resume is None:
        # A curve is of one run only.
        shutil.rmtree(runs / name / task, ignore_errors=True)
    # The order of images and everything random follow from the seed and the epoch, not from this
    # global state; it is set for whatever a user's own encoder draws.
    seed_everything(seed, verbose=False)
    module = CLIPClassifier(
        encoder=settings.encoder,
        task=suite.members[task].spec,
        pretrained=settings.pretrained,
        head=str(head),
        image_size=settings.image_size,
        learning_rate=(settings.linearised_rate if linearised else None) or own.learning_rate or 0.0,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        linearised=linearised,
    )
    callbacks: list[Callback] = [ExportWeights(str(folder)), ResumePoint(checkpoint)]
    if gram is not None:
        callbacks.append(SpareControl(str(gram), settings.spare_weight))
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=1,
        max_epochs=own.epochs,
        gradient_clip_val=1.0,
        logger=[
            TensorBoardLogger(runs, name=name, version=task, default_hp_metric=False),
            CSVLogger(runs, name=name, version=task if resume is None else f"{task}/resumed"),
        ],
        callbacks=callbacks,
        log_every_n_steps=5,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    checkpoint.unlink(missing_ok=True)
    accuracy = 100 * float(trainer.callback_metrics["val/acc"])
    return {
        "outcome": f"{accuracy:.1f}% on validation",
        "validation_accuracy": accuracy,
        "train_images": len(data.dataset("train")),
        "optimizer_steps": trainer.global_step,
    }
