"""What is silenced while a benchmark runs, and what is not."""

import logging
import warnings

import pytest

from sta_lightning.benchmark.progress import quiet


def test_quiet_silences_lightning_and_only_inside() -> None:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with quiet():
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == level


def test_quiet_lets_unexpected_warnings_through() -> None:
    with pytest.warns(UserWarning, match="something new"), quiet():
        warnings.warn("something new", stacklevel=1)
