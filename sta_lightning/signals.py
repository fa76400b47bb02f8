"""Signals that end a process let it put its things in order first, as Ctrl+C does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Of a batch system that is about to stop a job, and of a terminal that is closed.
ENDING = {getattr(signal, name): name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)}
"""The signals that end a process in order: number -> name."""


@contextmanager
def orderly_end() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP raise ``SystemExit(128 + number)``.

    So temporary files are removed. Who ignores the signal, as ``nohup`` does, or has a handler,
    keeps it. A second signal of the kind is ignored; SIGKILL ends the process at once.
    """
    owner = os.getpid()
    before: dict[int, Any] = {}

    def end(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # in a fork, which has nothing to put in order
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif signal.getsignal(number) is end or "SLURM_JOB_ID" not in os.environ:
            signal.signal(number, signal.SIG_IGN)
            raise SystemExit(128 + number)
        # Else Lightning has taken it over in a job of SLURM, which it ends after a batch, or queues
        # again.

    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
