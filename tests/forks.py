"""Call functions of a script, each in a process of its own that may die of it.

Importing torch takes most of such a test: one process imports the script once and forks for every
call.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 60.0  # seconds a call may take, against hangs
HUNG = 124


class Outcome(NamedTuple):
    """One call's exit status (negative: ended by that signal; 124: it hung) and what it printed."""

    status: int
    out: str
    err: str


def forked(
    script: Path, calls: Sequence[Sequence[object]], env: dict[str, str] | None = None
) -> list[Outcome]:
    """Call functions of ``script``, one after the other.

    Args:
        script: A file of Python.
        calls: Name of the function and its arguments, which it gets as text. Its result, if any, is
            the exit status.
        env: Environment variables besides those of this process.
    """
    words = json.dumps([[str(word) for word in call] for call in calls])
    done = subprocess.run(
        [sys.executable, __file__, str(script), words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(done.stdout[-2000:] + done.stderr[-6000:])
    return [Outcome(*found) for found in json.loads(done.stdout.splitlines()[-1])]


def _call(module: Any, name: str, words: list[str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                status = getattr(module, name)(*words) or 0
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = _wait(child)
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


def _wait(child: int) -> int:
    limit = time.monotonic() + TIMEOUT
    while time.monotonic() < limit:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HUNG


def _serve(script: Path, calls: list[list[str]]) -> None:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    spec.loader.exec_module(module)
    print(json.dumps([_call(module, name, words) for name, *words in calls]))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), json.loads(sys.argv[2]))
