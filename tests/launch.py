"""Start a script on several processes, the way torchrun does, and gather what each says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def launch(script: Path, processes: int, *words: str | Path, timeout: float = 200) -> list[str]:
    """Run ``script`` on ``processes`` processes joined by gloo and return the output of each, in rank order.

    A process that hangs, for want of another one in a collective, fails the test after ``timeout`` seconds.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for rank in range(processes):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "TORCHELASTIC_RUN_ID": "test",
        }
        running.append(
            subprocess.Popen(
                [sys.executable, str(script), str(processes), *map(str, words)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs: list[str] = []
    try:
        for process in running:
            outputs.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in running:
            process.kill()
    codes = [process.wait() for process in running]
    if any(codes):
        raise AssertionError(
            f"exit codes {codes}\n"
            + "\n".join(f"--- rank {r}\n{text[-3000:]}" for r, text in enumerate(outputs))
        )
    return outputs
