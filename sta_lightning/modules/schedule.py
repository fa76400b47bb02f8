"""The paper's learning-rate schedule: linear warm-up, then a cosine to zero, step by step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Return the factor on the learning rate for optimiser step ``step``, counted from 0.

    The first step of the warm-up already moves: it has the factor 1 / ``warmup_steps``. A warm-up
    never takes more than half of the run: a longer one would end before the learning rate has
    reached what was asked for, and with it the run would be over without ever having been annealed.
    The paper's own runs have 2 000 steps or more.

    Args:
        step: Steps taken before this one.
        warmup_steps: Steps of the linear part, 500 in the paper.
        total_steps: Steps of the whole run.
    """
    warmup = min(warmup_steps, total_steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
