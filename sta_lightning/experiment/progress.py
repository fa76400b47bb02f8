"""What a person sees while the chain runs: bars, one line per finished step, nothing else."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm  # type: ignore[import-untyped]

from sta_lightning.experiment.steps import Step

# Lightning tells these on its own loggers at every start of a Trainer.
_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
# Warnings that this package causes on purpose, by the beginning of their text: short epochs on
# purpose, a resumed run that goes on in its own log folder, no GPU wanted, loaders in the main
# process, limits on batches.
_EXPECTED = (
    r"The number of training batches .* is smaller than the logging interval",
    r"Experiment logs directory",
    r"GPU available but not used",
    r"The '.*_dataloader' does not have many workers",
    r"Checkpoint directory .* exists and is not empty",
    r"You called `self.log\(.*` but have no logger configured",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's notices and the warnings that are expected here; everything else still shows."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            for text in _EXPECTED:
                warnings.filterwarnings("ignore", message=f".*{text}")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def silent() -> Iterator[None]:
    """Show no bar that begins inside: those of single steps would disturb the one of all."""
    before = _shown.bars
    _shown.bars = False
    try:
        yield
    finally:
        _shown.bars = before


@dataclass
class _Shown:
    bars: bool = True


_shown = _Shown()


def bar(description: str, total: int, *, initial: int = 0, unit: str = "step") -> tqdm:
    """A progress bar that shows itself after one second and leaves nothing behind."""
    return tqdm(
        total=total,
        initial=initial,
        desc=f"  {description}",
        unit=unit,
        delay=1.0,
        leave=False,
        disable=not _shown.bars,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 5.0,
    )


@contextmanager
def pulse(description: str) -> Iterator[None]:
    """Show the time that passes during work whose progress cannot be counted."""
    display = tqdm(
        desc=f"  {description}",
        bar_format="{desc}  {elapsed}",
        leave=False,
        delay=1.0,
        dynamic_ncols=True,
        disable=not _shown.bars,
    )
    finished = threading.Event()
    interval = 0.5 if sys.stderr.isatty() else 15.0

    def beat() -> None:
        while not finished.wait(interval):
            display.refresh()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        display.close()


class StepReporter:
    """One line for each step that was done, one line for all that were done before."""

    def __init__(self) -> None:
        self._skipped = 0

    def __call__(self, step: Step) -> None:
        """Tell of one step."""
        if step.skipped:
            self._skipped += 1
            return
        self.flush()
        outcome = step.result.get("outcome", "")
        say(f"{step.name.replace('_', ' '):<44} {outcome:<34} {step.seconds:6.1f} s")

    def flush(self) -> None:
        """Tell how many steps were found done, if any."""
        if self._skipped:
            count = f"{self._skipped} step" + ("s" if self._skipped > 1 else "")
            say(f"{count} found done and skipped (--force does them again)")
            self._skipped = 0


def say(text: str) -> None:
    """Print one line without breaking a bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


class TrainingBar(Callback):
    """A bar over the optimiser steps of a fit, with the loss."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where training begins or goes on."""
        self._bar = bar(
            self.description,
            int(trainer.estimated_stepping_batches),
            initial=trainer.global_step,
            unit="step",
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar to the number of optimiser steps taken."""
        if self._bar is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            self._bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar when training breaks off."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class EvaluationBar(Callback):
    """A bar over the batches of ``Trainer.test`` or ``Trainer.validate``."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._bar: tqdm | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._open(trainer.num_test_batches)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar by one batch."""
        self._step()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._open(trainer.num_val_batches)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar by one batch."""
        self._step()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar when evaluation breaks off."""
        self._close()

    def _open(self, batches: Any) -> None:
        counts = batches if isinstance(batches, list) else [batches]
        self._bar = bar(self.description, int(sum(counts)), unit="batch")

    def _step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
