"""Runs that are declared a trial: they leave nothing where the results of a real run lie."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

_LIMITS = {
    TrainerFn.FITTING: "limit_train_batches",
    TrainerFn.VALIDATING: "limit_val_batches",
    TrainerFn.TESTING: "limit_test_batches",
    TrainerFn.PREDICTING: "limit_predict_batches",
}


def trial(trainer: Trainer, verb: TrainerFn | None = None) -> str | None:
    """The trainer's flag, as ``name=value``, by which a run is declared a trial; ``None`` if none.

    These are Lightning's flags for debugging: ``fast_dev_run``, ``overfit_batches``, and the limit
    on the batches of what is run. A limit on the validation within a fit declares none.

    Args:
        trainer: The trainer.
        verb: What is run; what runs now if not given.
    """
    asked: Any = trainer
    limit = _LIMITS.get(verb or trainer.state.fn)  # type: ignore[arg-type]  # nothing may run
    defaults: dict[str, Any] = {"fast_dev_run": False, "overfit_batches": 0.0, limit or "": 1.0}
    for flag, default in defaults.items():
        # One batch (1) is not all of them (1.0).
        found = getattr(asked, flag, default)
        if found != default or (flag == limit and type(found) is int):
            return f"{flag}={found}"
    return None


def is_trial(trainer: Trainer, result: object) -> bool:
    """Whether a result is not to be written because the run is a trial; if so, says it."""
    flag = trial(trainer)
    if flag is not None:
        rank_zero_info(f"not written: {result}, since {flag} declares a trial")
    return flag is not None


def leave_no_trace(trainer: Trainer, verb: TrainerFn) -> None:
    """Take loggers, and of a fit checkpoints, from a trainer, as ``fast_dev_run`` does."""
    trainer.loggers = [DummyLogger()] if trainer.loggers else []
    if verb == TrainerFn.FITTING:
        fit: Any = trainer
        fit.callbacks = [found for found in fit.callbacks if not isinstance(found, Checkpoint)]
