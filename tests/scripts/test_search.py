"""The search of distilled merges: what is fitted, and by what it is chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts.search.distilled import VARIANTS, chosen, random_vector, search
from sta_lightning.benchmark.kinds import every_seed
from sta_lightning.benchmark.settings import BenchmarkSettings
from tests.benchmark.conftest import random_clip as random_clip  # fixtures
from tests.benchmark.conftest import toy_benchmark as toy_benchmark
from tests.benchmark.conftest import toy_models as toy_models


# Lightning's of the CSV log beside the TensorBoard run, and of a benchmark's few images.
@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_variant_is_fitted_and_measured_on_both_halves(
    toy_benchmark: BenchmarkSettings, tmp_path: Path
) -> None:
    seeds = every_seed(replace(toy_benchmark, output=str(tmp_path), seeds=[0])).values()
    names = ["swudi_a, spectral_sta", "swudi_a, random"]
    log = tmp_path / "search.jsonl"
    rows = search(seeds, {name: VARIANTS[name] for name in names}, [1, 8], log)
    assert [json.loads(line) for line in log.read_text().splitlines()] == rows
    assert [(row["variant"], row["images"], row["steps"]) for row in rows] == [
        (name, images, step) for name in names for images in ("all", "half") for step in (1, 8)
    ]
    for first, last in zip(rows[::2], rows[1::2], strict=True):
        assert last["fitted"] < first["fitted"]
    assert rows[0]["fitted"] != rows[2]["fitted"], "half of the images give another merge"


def test_validation_chooses_and_test_decides_nothing() -> None:
    def row(images: str, steps: int, held_out: float, validation: float, test: float) -> dict[str, object]:
        own = {"variant": "a", "images": images, "seed": 0, "steps": steps, "fitted": 0.0}
        return {**own, "held out": held_out, "validation": validation, "test": test}

    rows = [
        row("all", 10, 0.0, 80.0, 99.0),
        row("all", 20, 0.0, 81.0, 70.0),
        row("all", 30, 0.0, 79.0, 98.0),
        # Here it is the held-out half alone that counts.
        row("half", 10, 0.3, 10.0, 0.0),
        row("half", 20, 0.2, 20.0, 0.0),
        row("half", 30, 0.1, 10.0, 0.0),
    ]
    best, stopped = chosen(rows)
    assert best == {
        "variant": "a",
        "steps by": "validation",
        "steps": [20],
        "validation": 81.0,
        "test": 70.0,
    }
    assert (stopped["steps by"], stopped["steps"], stopped["test"]) == ("held-out half", [30], 98.0)


def test_the_control_is_drawn_and_as_long_as_the_sum() -> None:
    deltas = torch.randn(3, 5, 4)
    found = random_vector(deltas[0], deltas)
    torch.testing.assert_close(found.norm(), deltas.sum(0).norm())
    assert torch.equal(found, random_vector(deltas[1], deltas))
    assert abs(torch.nn.functional.cosine_similarity(found.flatten(), deltas.sum(0).flatten(), 0)) < 0.9
