"""Whole commands, timed from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        process: seconds of the whole process, from its start to its end.
        busy: seconds of processor time in it.
        work: seconds of the merge inside it, as it says itself.
    """

    process: float
    busy: float
    work: float


def timed(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command once.

    Args:
        command: its words.
        environment: variables of its own; by default this checkout is where modules are found.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, **(environment or {"PYTHONPATH": str(ROOT)})}
    before, start = _busy(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds, busy = time.perf_counter() - start, _busy() - before
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    said = re.search(r"([\d.]+) s\)", done.stdout)
    return Cost(seconds, busy, float(said[1]) if said else float("nan"))


def _busy() -> float:
    """Seconds of processor time of all commands that have ended."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


@dataclass(frozen=True)
class Watched:
    """What a process took, as seen from outside.

    Attributes:
        seconds: from its start to its end.
        busy: seconds of processor time in it.
        private: its private anonymous memory (RssAnon) at its highest, in MB.
        peak: its resident memory at its peak (VmHWM), in MB.
    """

    seconds: float
    busy: float
    private: float
    peak: float


def watched(command: Sequence[str]) -> Watched:
    """Run a command once, with modules from this checkout, and look at its memory meanwhile.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    highest = {"RssAnon": 0, "VmHWM": 0}
    with tempfile.TemporaryFile("w+") as said:
        before, start = _busy(), time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            with contextlib.suppress(OSError):  # it has just ended
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                for name, kilobytes in re.findall(r"^(RssAnon|VmHWM):\s+(\d+)", status, re.MULTILINE):
                    highest[name] = max(highest[name], 1024 * int(kilobytes))
            time.sleep(0.003)
        seconds, busy = time.perf_counter() - start, _busy() - before
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()}")
    return Watched(seconds, busy, highest["RssAnon"] / 1e6, highest["VmHWM"] / 1e6)


def sta(*words: str) -> list[str]:
    """The command ``sta`` of a checkout."""
    return [sys.executable, "-m", "sta_lightning", *words]


def probed(*words: str, environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """What ``probe.py`` tells of a piece of work; see :func:`timed`."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        timed([sys.executable, str(Path(__file__).with_name("probe.py")), str(result), *words], environment)
        found: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
        return found


def private_memory(*words: str) -> tuple[float, float]:
    """Private memory of ``sta`` in MB: after importing torch, and at its highest."""
    found = probed("sta", *words)
    return found["torch"] / 1e6, found["highest"] / 1e6
