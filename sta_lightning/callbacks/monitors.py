"""Callbacks that watch a number: one that is never logged is refused before the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule

from sta_lightning.errors import StaError, listed

_KNOWN = ("lightning.", "sta_lightning.")
_COUNTED = ("epoch", "step")  # by ModelCheckpoint itself


def check_monitors(module: LightningModule, logged: Sequence[str]) -> None:
    """Refuse a trainer's callback whose ``monitor`` is none of the numbers that a fit logs.

    Lightning finds out when the first epoch is over. Where a module or a callback of somebody
    else's takes part, which may log numbers of its own, nothing is refused.

    Args:
        module: What is trained.
        logged: The names of all numbers that it logs.

    Raises:
        StaError: It names the callback, and the numbers that there are.
    """
    trainer: Any = module.trainer
    if not all(type(part).__module__.startswith(_KNOWN) for part in (module, *trainer.callbacks)):
        return
    for callback in trainer.callbacks:
        asked = getattr(callback, "monitor", None)
        if isinstance(asked, str) and asked not in (*logged, *_COUNTED):
            raise StaError(
                f"{type(callback).__name__} was asked to monitor {asked!r}, which this fit does not log. "
                f"It logs {listed(logged, limit=12)}."
            )
