"""Do some work in this process and tell what it cost: ``probe.py RESULT.json WHAT WORD...``.

It imports nothing of this checkout but ``sta_lightning``, wherever the modules' path finds it: so
one probe measures two checkouts.
"""

from __future__ import annotations

import importlib
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE, TASKS, P = (2304, 1024), 6, 0.7
"""Of the tensor that is fused in memory."""
SAMPLES, CLASSES = 32, 10
"""Of the scoring."""
State = dict[str, Tensor]


def one_tensor(shape: tuple[int, int] = SHAPE) -> tuple[State, dict[str, State], dict[str, State]]:
    """Pretrained weights, fine-tuned ones and importances of six tasks, of a single tensor."""
    generator = torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return torch.randn(shape, generator=generator)

    base, names = random(), [f"task{i}" for i in range(TASKS)]
    finetuned = {name: {"w": base + 1e-3 * random()} for name in names}
    return {"w": base}, finetuned, {name: {"w": random().abs().pow(3)} for name in names}


def scoring(encoder: str, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """The importance of some samples, and one batched forward and backward pass over the same."""
    torch.manual_seed(0)
    tower: Any = importlib.import_module("sta_lightning.encoders").build_encoder(encoder, "random").eval()
    size = tower.image_size if isinstance(tower.image_size, tuple) else (tower.image_size,) * 2
    model = nn.Sequential(tower, nn.Linear(tower.output_dim, CLASSES)).to(device)
    images = torch.randn(SAMPLES, 3, *size, device=device)
    targets = torch.randint(CLASSES, (SAMPLES,), device=device)
    names = [name for name, _ in model.named_parameters() if name.startswith("0.")]
    try:
        gradients = importlib.import_module("sta_lightning.arithmetic.gradients").gradient_sums
    except ImportError:  # version 0.1.0
        gradients = importlib.import_module("sta_lightning.arithmetic.taylor").taylor_importance

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def score() -> None:
        gradients(model, F.cross_entropy, images, targets, names=names)
        wait()

    def batch() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), targets).backward()
        wait()

    return {"score": score, "batch": batch}


def private_memory() -> int:
    """Private anonymous memory of this process in bytes (RssAnon)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def command(words: list[str]) -> dict[str, float]:
    """Run ``sta``; what it cost, and the private memory before and at its highest."""
    before = private_memory()
    highest, done = before, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, private_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    sta = importlib.import_module("sta_lightning.cli.main").main

    def run() -> None:
        if sta(words):
            raise SystemExit(f"sta {' '.join(words)} failed")

    cost = _cost(run)
    done.set()
    watcher.join()
    return cost | {"torch": before, "highest": max(highest, private_memory())}


def fuse() -> dict[str, float]:
    """Fuse one tensor in memory: the median of many times, after the first."""
    arithmetic, models = importlib.import_module("sta_lightning.arithmetic"), one_tensor()
    arithmetic.fuse(*models)
    costs = [_cost(lambda: arithmetic.fuse(*models)) for _ in range(20)]
    return {key: statistics.median(cost[key] for cost in costs) for key in costs[0]}


def calls() -> dict[str, float]:
    """Seconds of the first calls of ``fuse`` in a process, and of later ones beside busy ones.

    The kept loops are those of ``$STA_CACHE``: an empty folder for a machine that has none.
    """
    arithmetic = importlib.import_module("sta_lightning.arithmetic")
    models = one_tensor((3072, 768))
    found = {}
    for name in ("first", "second", "third"):
        found[name] = _cost(lambda: arithmetic.fuse(*models))["seconds"]

    def median() -> float:
        return statistics.median(_cost(lambda: arithmetic.fuse(*models))["seconds"] for _ in range(20))

    base, (tuned, scores) = models[0]["w"], ([s["w"] for s in states.values()] for states in models[1:])

    def quantile() -> Tensor:
        """Eq. 13 to 19, one after another, on whole tensors."""
        stack = torch.stack([(score - score.min()) / (score.max() - score.min()) for score in scores])
        above = stack > torch.quantile(stack, P, dim=0)
        return base + (above * (torch.stack(tuned) - base)).sum(0)

    found["quantile"] = statistics.median(_cost(quantile)["seconds"] for _ in range(3))
    found["quiet"] = median()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        for name, count in (("beside one", 1), ("beside four", 4)):
            for process in busy[count:]:
                process.send_signal(signal.SIGSTOP)
            for process in busy[:count]:
                process.send_signal(signal.SIGCONT)
            found[name] = median()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return found


def score(encoder: str) -> dict[str, float]:
    """Score, after one batched pass."""
    work = scoring(encoder)
    work["batch"]()
    return _cost(work["score"])


def _cost(work: Callable[[], object]) -> dict[str, float]:
    wall, busy = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - wall, "busy": time.process_time() - busy}


def main(result: str, what: str, *words: str) -> None:
    """Measure and write the result."""
    found = {"sta": lambda: command([*words]), "fuse": fuse, "calls": calls, "score": lambda: score(*words)}[
        what
    ]()
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
