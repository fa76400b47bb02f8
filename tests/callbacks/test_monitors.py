"""A number that is never logged is missed before the training, not after an epoch of it."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

from sta_lightning.callbacks.monitors import check_monitors
from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier

LOGGED = ["train/loss", "val/acc"]


class Mine(Callback):
    """May log a number of its own."""


class Other(LightningModule):
    """Logs nobody knows what."""


def check(*callbacks: Callback, module: LightningModule | None = None) -> None:
    found: Any = module or CLIPClassifier()
    found._trainer = type("Trainer", (), {"callbacks": list(callbacks)})()
    check_monitors(found, LOGGED)


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
def test_an_unknown_number_is_refused(kind: Any) -> None:
    with pytest.raises(StaError, match=rf"{kind.__name__} .*'val/acx'.*It logs 'train/loss', 'val/acc'\."):
        check(LearningRateMonitor(), kind(monitor="val/acx"))


def test_what_is_logged_or_counted_may_be_watched() -> None:
    check(EarlyStopping(monitor="val/acc"), ModelCheckpoint(monitor="step"), ModelCheckpoint())


def test_others_may_log_what_they_like() -> None:
    check(EarlyStopping(monitor="mine"), Mine())
    check(EarlyStopping(monitor="mine"), module=Other())
