"""The search of distilled merges: what is fitted, and by what it is chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts.search.distilled import VARIANTS, chosen, drawn, search
from sta_lightning.benchmark.kinds import every_seed
from sta_lightning.benchmark.settings import BenchmarkSettings
from tests.benchmark.conftest import random_clip as random_clip  # fixtures
from tests.benchmark.conftest import toy_benchmark as toy_benchmark
from tests.benchmark.conftest import toy_models as toy_models


# Lightning's of the CSV log beside the TensorBoard run, and of a benchmark's few images.
@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_variant_is_fitted_and_measured(toy_benchmark: BenchmarkSettings, tmp_path: Path) -> None:
    seeds = every_seed(replace(toy_benchmark, output=str(tmp_path), seeds=[0])).values()
    names = ["row", "row, crops", "row, crops, drawn"]
    log = tmp_path / "search.jsonl"
    rows = search(seeds, {name: VARIANTS[name] for name in names}, [1, 8], log)
    assert [json.loads(line) for line in log.read_text().splitlines()] == rows
    assert [(row["variant"], row["steps"]) for row in rows] == [
        (name, step) for name in names for step in (1, 8)
    ]
    for first, last in zip(rows[::2], rows[1::2], strict=True):
        assert last["divergence"] < first["divergence"]
    assert len({row["divergence"] for row in rows[1::2]}) == 3, "crops and drawn vectors give other merges"


def test_validation_chooses_and_test_decides_nothing() -> None:
    def row(name: str, seed: int, steps: int, validation: float, test: float) -> dict[str, object]:
        return {"variant": name, "seed": seed, "steps": steps, "validation": validation, "test": test}

    rows = [
        *[row("a", 0, 10, 80.0, 99.0), row("a", 1, 10, 82.0, 99.0)],
        *[row("a", 0, 20, 81.0, 70.0), row("a", 1, 20, 83.0, 74.0)],
        *[row("b", 0, 10, 82.5, 60.0), row("b", 0, 20, 82.0, 98.0)],
    ]
    assert chosen(rows) == [
        {"variant": "b", "steps": 10, "validation": 82.5, "test": 60.0, "seeds": 1},
        {
            **{"variant": "a", "steps": 20, "validation": 82.0, "test": 72.0},
            **{"± (test)": 2.83, "seeds": 2},
        },
    ]


def test_the_control_is_drawn_and_as_long_as_the_vectors() -> None:
    vectors = {name: {"w": torch.randn(5, 4), "b": torch.zeros(3)} for name in ("merge/a", "task")}
    found = drawn(vectors)
    assert torch.equal(found["merge/a"]["w"], vectors["merge/a"]["w"])
    torch.testing.assert_close(found["task"]["w"].norm(), vectors["task"]["w"].norm())
    assert torch.equal(found["task"]["b"], torch.zeros(3))
    assert torch.equal(found["task"]["w"], drawn(vectors)["task"]["w"])
    pair = found["task"]["w"].flatten(), vectors["task"]["w"].flatten()
    assert abs(torch.nn.functional.cosine_similarity(*pair, 0)) < 0.9
