"""Run ``sta`` in this process and tell what it cost: ``python probe.py RESULT.json WORD...``."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path


def private_memory() -> int:
    """Private anonymous memory of this process in bytes (RssAnon)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """Measure and write the result."""
    import torch  # noqa: F401 (what torch alone takes is what the merge is measured against)

    before = private_memory()
    highest, done = before, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, private_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    from sta_lightning.cli.main import main as sta

    start = time.perf_counter()
    status = sta(sys.argv[2:])
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    result = {
        "status": status,
        "seconds": seconds,
        "torch": before,
        "highest": max(highest, private_memory()),
    }
    Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
