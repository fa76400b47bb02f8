"""Whole commands, timed from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        process: seconds of the whole process, from its start to its end.
        work: seconds of the merge inside it, as it says itself.
    """

    process: float
    work: float


def environment() -> dict[str, str]:
    """This process's, with the checkout in front of the modules' path."""
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{path}" if path else str(ROOT)}


def timed(command: Sequence[str]) -> Cost:
    """Run a command once.

    Raises:
        SystemExit: it failed.
    """
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    said = re.search(r"\(([\d.]+) s\)", done.stdout)
    return Cost(seconds, float(said[1]) if said else float("nan"))


def sta(*words: str) -> list[str]:
    """The command ``sta`` of this checkout."""
    return [sys.executable, "-m", "sta_lightning", *words]


def private_memory(*words: str) -> tuple[float, float]:
    """Private memory of ``sta`` in MB: after importing torch, and at its highest."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        probe = Path(__file__).with_name("probe.py")
        timed([sys.executable, str(probe), str(result), *words])
        found = json.loads(result.read_text(encoding="utf-8"))
    return found["torch"] / 1e6, found["highest"] / 1e6
