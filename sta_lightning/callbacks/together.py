"""Failing together: one process's error becomes every process's error, so that none waits for ever in a collective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed
from lightning.pytorch import Trainer

from sta_lightning.errors import StaError


class Step:
    """A piece of work that every process of a trainer does, or none is taken to have done."""

    def __init__(self, trainer: Trainer, what: str) -> None:
        self._trainer = trainer
        self._what = what
        self.error: Exception | None = None

    def check(self) -> None:
        """Raise the same StaError on every process if the work failed on any. A collective: call it on all.

        Raises:
            StaError: What the first process that failed has to say.
        """
        message = None
        if isinstance(self.error, StaError):
            message = str(self.error)
        elif self.error is not None:
            where = f" on process {self._trainer.global_rank}" if self._trainer.world_size > 1 else ""
            message = f"{self._what} failed{where}: {type(self.error).__name__}: {self.error}"
        messages: list[str | None] = [message]
        if self._trainer.world_size > 1:
            messages = [None] * self._trainer.world_size
            torch.distributed.all_gather_object(messages, message)
        first = next((text for text in messages if text is not None), None)
        if first is not None:
            raise StaError(first) from self.error


@contextmanager
def together(trainer: Trainer, what: str) -> Iterator[Step]:
    """Hold back an error of the block until ``check`` has told the other processes.

    Args:
        trainer: The running trainer.
        what: What the block does, for the message: ``"Scoring"``.

    Yields:
        The step, whose ``check`` every process calls after the block and before anything that uses
        its results.
    """
    step = Step(trainer, what)
    try:
        yield step
    except Exception as error:  # whatever it is, the other processes must hear of it
        step.error = error
