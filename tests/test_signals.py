"""SIGTERM, SIGHUP and Ctrl+C end a run in order: one message, a status, no temporary file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from sta_lightning.signals import orderly_end
from tests.forks import forked

WORKER = Path(__file__).with_name("signals_worker.py")
WAYS = ("writing", "fitting")
STATUS = {"SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130}


def test_each_of_them_ends_the_run_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    calls = [(way, tmp_path / way / name, name) for way in WAYS for name in STATUS]
    for (way, folder, name), (status, _, err) in zip(calls, forked(WORKER, calls), strict=True):
        assert status == STATUS[name], (way, name, err)
        said = "interrupted" if name == "SIGINT" else f"ended by {name}"
        assert [line for line in err.splitlines() if line.startswith("sta: ")] == [f"sta: error: {said}"]
        assert os.listdir(folder) == ["old.txt"]
        assert (folder / "old.txt").read_text() == "old"


def test_who_ignores_a_signal_still_does_and_handlers_come_back() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with orderly_end():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(SystemExit) as ended:
                os.kill(os.getpid(), signal.SIGTERM)
            assert ended.value.code == 143
            os.kill(os.getpid(), signal.SIGTERM)  # while it puts its things in order
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])


def test_lightning_s_own_end_in_a_job_of_slurm_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = signal.getsignal(signal.SIGTERM)
    with orderly_end():
        own = signal.getsignal(signal.SIGTERM)
        assert callable(own)
        signal.signal(signal.SIGTERM, lambda number, frame: own(number, frame))
        os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, own)
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
