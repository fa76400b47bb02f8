"""Progress as plain lines, where nothing can be redrawn: in a pipe, a file, a dumb terminal."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from sta_lightning.errors import printable

SECONDS = 10.0
"""The least time between two lines, and before the first."""


# Lightning tells what it is about on these at every start of a Trainer.
_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


@contextmanager
def without_notices() -> Iterator[None]:
    """Silence Lightning's notices, of a trainer that nobody asked for by name; warnings show."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def redraws() -> bool:
    """Whether a bar can be redrawn: standard output and error are terminals, and no dumb ones."""
    return os.environ.get("TERM") != "dumb" and sys.stdout.isatty() and sys.stderr.isatty()


class Pace:
    """Says when a line is due: one in :data:`SECONDS` at most."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether a line may be written now; it counts as written."""
        now = time.monotonic()
        due = now - self._last >= SECONDS
        self._last = now if due else self._last
        return due


class Lines:
    """Stands in for a bar: how far something is, as lines on standard error.

    Args:
        description: What goes on.
        total: Of how many; may be infinite.
        unit: Of what, in the singular.
        pace: When a line is due, where several share the screen.
    """

    def __init__(self, description: str, total: float, *, unit: str, pace: Pace | None = None) -> None:
        self.total, self.done = total, 0
        self._what = f"{description}: {unit}"
        self._pace = pace or Pace()
        self._start = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """A bar would vanish; what is written stays."""

    def update(self, count: int = 1, note: Callable[[], str] = str) -> None:
        """Count, and write a line if one is due, with a note at its end."""
        self.done += count
        if not self._pace.due():
            return
        seconds = time.monotonic() - self._start
        known = math.isfinite(self.total)
        text = f"{self._what} {self.done}{f' of {self.total:.0f}' if known else ''}, {seconds:.0f} s"
        if known and self.done:
            text += f", about {seconds * max(self.total - self.done, 0) / self.done:.0f} s left"
        print(printable(f"{text}{note()}"), file=sys.stderr, flush=True)


class StepLines(Callback):
    """The steps of a fit as :class:`Lines`, for a fit within something else, which has no bar.

    Args:
        description: What is fitted.
    """

    def __init__(self, description: str) -> None:
        self._description = description
        self._lines = Lines(description, 0, unit="step")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._lines = Lines(self._description, trainer.max_steps, unit="step")

    def on_train_batch_end(self, *about: Any) -> None:
        """Count a step."""
        self._lines.update()


class PlainProgress(ProgressBar):
    """Lightning's progress as :class:`Lines`: batches, and the metrics that a bar would show."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace()
        self._enabled = True
        self._training = self._evaluating = self._lines("", [])

    def disable(self) -> None:
        """Say nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Say something again."""
        self._enabled = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the epoch's batches."""
        self._training = self._lines(f"epoch {trainer.current_epoch + 1}", [self.total_train_batches])

    def on_train_batch_end(self, trainer: Trainer, *about: Any) -> None:
        """Count a batch."""
        self._count(self._training, trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the batches of all splits."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._evaluating = self._lines("validation", batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the batches of all splits."""
        self._evaluating = self._lines("test", trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the batches of all splits."""
        self._evaluating = self._lines("predict", trainer.num_predict_batches)

    def on_validation_batch_end(self, trainer: Trainer, *about: Any, **more: Any) -> None:
        """Count a batch."""
        self._count(self._evaluating, trainer)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def _lines(self, description: str, batches: Iterable[float]) -> Lines:
        return Lines(description, sum(batches), unit="batch", pace=self._pace)

    def _count(self, lines: Lines, trainer: Trainer) -> None:
        if self._enabled:
            lines.update(
                note=lambda: "".join(
                    f", {key} {value:.4g}" for key, value in trainer.progress_bar_metrics.items()
                )
            )
