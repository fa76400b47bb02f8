"""The warm-up and cosine schedule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from sta_lightning.modules.schedule import warmup_cosine


def test_the_papers_schedule() -> None:
    factors = [warmup_cosine(step, warmup_steps=500, total_steps=2000) for step in range(2001)]
    assert factors[0] == 1 / 500
    assert factors[249] == 0.5
    assert factors[499] == 1
    assert factors[500] == 1
    assert factors[1250] == pytest.approx(0.5)
    assert factors[2000] == 0
    assert all(a >= b for a, b in pairwise(factors[500:]))


def test_a_warm_up_takes_at_most_half_of_the_run() -> None:
    factors = [warmup_cosine(step, warmup_steps=500, total_steps=100) for step in range(101)]
    assert max(factors) == 1
    assert factors[49] == 1
    assert factors[75] == pytest.approx(0.5)
    assert factors[100] == 0


@pytest.mark.parametrize("total", [0, 1, 2])
def test_very_short_runs_move_all_the_same(total: int) -> None:
    assert all(
        0 < warmup_cosine(step, warmup_steps=500, total_steps=total) <= 1 for step in range(max(total, 1))
    )


def test_no_warm_up() -> None:
    assert warmup_cosine(0, warmup_steps=0, total_steps=10) == 1
    assert warmup_cosine(3, warmup_steps=0, total_steps=10) == pytest.approx(
        0.5 * (1 + math.cos(0.3 * math.pi))
    )
