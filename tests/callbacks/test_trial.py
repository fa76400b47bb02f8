"""Which flags of a trainer declare a trial."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from sta_lightning.callbacks.trial import leave_no_trace, trial
from sta_lightning.modules.parts import QUIET


@pytest.mark.parametrize(
    ("verb", "settings", "expected"),
    [
        (TrainerFn.FITTING, {}, None),
        (TrainerFn.FITTING, {"fast_dev_run": True}, "fast_dev_run=True"),
        (TrainerFn.TESTING, {"fast_dev_run": 3}, "fast_dev_run=3"),
        (TrainerFn.FITTING, {"overfit_batches": 2}, "overfit_batches=2"),
        (TrainerFn.FITTING, {"overfit_batches": 0.5}, "overfit_batches=0.5"),
        (TrainerFn.FITTING, {"limit_train_batches": 1}, "limit_train_batches=1"),
        (TrainerFn.FITTING, {"limit_train_batches": 0.25}, "limit_train_batches=0.25"),
        (TrainerFn.FITTING, {"limit_train_batches": 1.0}, None),
        (TrainerFn.FITTING, {"limit_val_batches": 0, "limit_test_batches": 1}, None),
        (TrainerFn.VALIDATING, {"limit_val_batches": 0}, "limit_val_batches=0"),
        (TrainerFn.TESTING, {"limit_test_batches": 4}, "limit_test_batches=4"),
        (TrainerFn.PREDICTING, {"limit_predict_batches": 0.5}, "limit_predict_batches=0.5"),
        (TrainerFn.PREDICTING, {"limit_test_batches": 4}, None),
    ],
)
def test_the_flags(verb: TrainerFn, settings: dict[str, Any], expected: str | None) -> None:
    assert trial(Trainer(accelerator="cpu", **QUIET, **settings), verb) == expected


def test_loggers_and_checkpoints_are_taken_away() -> None:
    trainer = Trainer(accelerator="cpu", logger=True, enable_checkpointing=True)
    assert trainer.checkpoint_callbacks
    leave_no_trace(trainer, TrainerFn.FITTING)
    assert not trainer.checkpoint_callbacks
    assert [logger.log_dir for logger in trainer.loggers] == [None]
