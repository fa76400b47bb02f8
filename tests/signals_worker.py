"""Runs that are ended by a signal while they write a file."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from sta_lightning.cli.guard import guarded
from sta_lightning.weights import atomic_path
from tests.toys import quiet_trainer

# As a shell leaves them to what it runs in the foreground.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)


def write(folder: str, name: str) -> None:
    """Be ended in the middle of a file."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    target = Path(folder) / "old.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(30)


def writing(folder: str, name: str) -> int:
    """As a merge would."""
    return guarded(lambda: write(folder, name), debug=False)


class Ended(LightningModule):
    """A fit that is ended at its first step, where Lightning has handlers of its own."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.folder, self.name = folder, name

    def training_step(self, batch: Any, batch_idx: int) -> None:
        write(self.folder, self.name)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fitting(folder: str, name: str) -> int:
    """As a fit would."""
    trainer = quiet_trainer(max_steps=2)
    module = Ended(folder, name)
    return guarded(lambda: trainer.fit(module, DataLoader([torch.ones(1)] * 2)), debug=False)
