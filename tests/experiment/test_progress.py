"""What is shown while the chain runs, and what is not."""

import logging
import warnings
from pathlib import Path

import pytest

from sta_lightning.experiment.progress import StepReporter, pulse, quiet
from sta_lightning.experiment.steps import Step


def step(name: str, *, skipped: bool) -> Step:
    return Step(name, Path("x"), {"outcome": "71.0% on average"}, 2.5, skipped)


def test_one_line_per_step_and_one_for_all_that_were_done(capsys: pytest.CaptureFixture[str]) -> None:
    report = StepReporter()
    for name, skipped in (("a", True), ("b", True), ("finetune/street_numbers", False), ("c", True)):
        report(step(name, skipped=skipped))
    report.flush()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 steps found done and skipped (--force does them again)"
    assert lines[1].split() == ["finetune/street", "numbers", "71.0%", "on", "average", "2.5", "s"]
    assert lines[2] == "1 step found done and skipped (--force does them again)"
    assert len(lines) == 3


def test_quiet_silences_lightning_and_only_inside() -> None:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with quiet():
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == level


def test_quiet_lets_unexpected_warnings_through() -> None:
    with pytest.warns(UserWarning, match="something new"), quiet():
        warnings.warn("something new", stacklevel=1)


def test_pulse_ends_with_its_work_even_when_that_fails() -> None:
    with pytest.raises(RuntimeError, match="broken"), pulse("work"):
        raise RuntimeError("broken")
