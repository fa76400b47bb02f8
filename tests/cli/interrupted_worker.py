"""Fits on a toy task that Ctrl+C ends after a number of batches."""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor

from sta_lightning.cli.main import main
from tests.toys import register_toys

signal.signal(signal.SIGINT, signal.default_int_handler)  # as a shell leaves it in the foreground


def fit(folder: str, interrupted: str, *words: str) -> int:
    """``sta fit`` in a folder; the signal comes after so many steps, 0 for never."""

    def end(self: Any, trainer: Trainer, module: LightningModule, *about: Any) -> None:
        if trainer.global_step == int(interrupted):
            os.kill(os.getpid(), signal.SIGINT)

    # A callback of the shipped configuration.
    LearningRateMonitor.on_train_batch_end = end  # type: ignore[method-assign]
    register_toys()
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    return main(["fit", *words])
