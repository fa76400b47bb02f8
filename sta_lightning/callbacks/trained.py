"""What the callbacks share that take the weights of a fit when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from sta_lightning.callbacks.scorable import check_strategy
from sta_lightning.encoders.adapters import is_adapted, merged


@contextmanager
def adapters_merged(module: LightningModule, path: str = "encoder") -> Iterator[None]:
    """While it lasts, a part of a module is a plain one with what its adapters add, if it has any.

    Args:
        module: Any.
        path: Where the part is in it, dotted; with an empty one nothing is done.
    """
    parent, _, name = path.rpartition(".")
    owner = module.get_submodule(parent)
    part = getattr(owner, name, None) if name else None
    if not is_adapted(part):
        yield
        return
    setattr(owner, name, merged(part))
    try:
        yield
    finally:
        setattr(owner, name, part)


class TakesTrained(Callback):
    """Base of callbacks that take the trained weights in ``on_train_end``.

    Lightning calls callbacks in their order, and those that average weights put the average into
    the module there: the weights are taken after them, wherever these stand.

    Raises:
        StaError: The trainer's strategy shards the weights; raised before the training.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a strategy that shards, and move behind the callbacks that may change weights."""
        check_strategy(trainer)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        # A new list: Lightning goes through the old one at this moment. Checkpoints stay the last.
        trainer.callbacks = sorted(callbacks, key=_place)  # type: ignore[attr-defined]


def _place(callback: Callback) -> int:
    return 2 if isinstance(callback, Checkpoint) else int(isinstance(callback, TakesTrained))
