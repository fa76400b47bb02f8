"""Run a script's ``main`` on several processes joined by gloo, and gather what each says.

Importing torch and Lightning takes most of such a test: a helper process imports the script once
and forks the others.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 240.0


def launch(script: Path, worlds: Sequence[int], folder: Path) -> dict[int, list[str]]:
    """Call ``main(processes, folder)`` of ``script`` on 1, 2, … processes, one after the other.

    A process that hangs, for want of another one in a collective, is killed and fails the test.

    Returns:
        By number of processes: what each process has printed, in rank order.

    Raises:
        AssertionError: A process failed or hung; its output is in the message.
    """
    done = subprocess.run(
        [sys.executable, __file__, str(script), str(folder), *map(str, worlds)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(done.stdout[-2000:] + done.stderr[-6000:])
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return {int(world): texts for world, texts in found.items()}


def _run_world(script: Path, processes: int, folder: Path) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outputs = [folder / f"output-{processes}-{rank}.txt" for rank in range(processes)]
    running: dict[int, int] = {}
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            _become(script, processes, rank, port, folder, outputs[rank])
        running[child] = rank
    codes: dict[int, int] = {}
    limit = time.monotonic() + TIMEOUT
    while running and time.monotonic() < limit:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in running:
            codes[running.pop(child)] = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.05)
    for child, rank in running.items():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        codes[rank] = -signal.SIGKILL
    texts = [path.read_text() if path.is_file() else "" for path in outputs]
    if any(codes.values()):
        shown = "\n".join(f"--- rank {rank}\n{text[-2500:]}" for rank, text in enumerate(texts))
        raise SystemExit(f"{processes} processes, exit codes {sorted(codes.items())}\n{shown}")
    return texts


def _become(script: Path, processes: int, rank: int, port: int, folder: Path, output: Path) -> None:
    """Be one process of a world, in a fork; never returns."""
    code = 1
    try:
        with output.open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        os.environ.update(
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            GROUP_RANK="0",
            WORLD_SIZE=str(processes),
            LOCAL_WORLD_SIZE=str(processes),
            TORCHELASTIC_RUN_ID="test",
        )
        sys.modules[script.stem].main(processes, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve(script: Path, folder: Path, worlds: Sequence[int]) -> None:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    spec.loader.exec_module(module)
    found = {world: _run_world(script, world, folder) for world in worlds}
    print(json.dumps(found))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]), [int(word) for word in sys.argv[3:]])
