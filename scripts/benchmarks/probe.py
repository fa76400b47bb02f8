"""Do some work in this process and tell what it cost: ``probe.py RESULT.json WHAT WORD...``.

It imports nothing of this checkout but ``sta_lightning``, wherever the modules' path finds it: so
one probe measures two checkouts.
"""

from __future__ import annotations

import importlib
import json
import statistics
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


def one_tensor() -> tuple[State, dict[str, State], dict[str, State]]:
    """Pretrained weights, fine-tuned ones and importances of six tasks, of a single tensor."""
    generator = torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return torch.randn(SHAPE, generator=generator)

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
    found = {"sta": lambda: command([*words]), "fuse": fuse, "score": lambda: score(*words)}[what]()
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
