"""Which cells there are, in which order, and what is said of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sta_lightning.benchmark.cells import Cell, windows
from sta_lightning.benchmark.kinds import other_fine_tunings
from sta_lightning.benchmark.plan import described, duration, plan
from sta_lightning.benchmark.settings import BenchmarkSettings, Curves, TradeOff


def test_every_cell_comes_after_those_that_it_needs(toy_benchmark: BenchmarkSettings) -> None:
    cells = plan(toy_benchmark)
    seen: set[str] = set()
    for cell in cells:
        assert cell.id not in seen
        assert set(cell.needs) <= seen
        seen.add(cell.id)
    assert Counter(cell.kind for cell in cells) == {
        "heads": 2,
        "models": 4,
        "references": 2,
        "conflict": 1,
        "fusion": 12,
        "pair": 2,
        "forgetting": 4,
        "trade_off": 4,
        "curve_p": 2,
        "curve_samples": 2,
        "curve_tasks": 2,
        "level": 4,
    }


def test_forgetting_by_several_fine_tunings_waits_for_all_of_them(toy_benchmark: BenchmarkSettings) -> None:
    cell = next(cell for cell in plan(toy_benchmark) if cell.kind == "forgetting")
    assert {"seed_0/models/warm", "seed_1/models/warm"} <= set(cell.needs)
    alone = {key: entry for key, entry in toy_benchmark.forget_methods.items() if key != "negmerge"}
    cell = next(
        cell for cell in plan(replace(toy_benchmark, forget_methods=alone)) if cell.kind == "forgetting"
    )
    assert not any(need.startswith("seed_1") for need in cell.needs)


def test_a_trade_off_counts_what_the_table_has_not(toy_benchmark: BenchmarkSettings) -> None:
    def images(*values: float) -> set[float]:
        trade_off = TradeOff({"ta": {"scale": list(values)}})
        cells = plan(replace(toy_benchmark, trade_off=trade_off))
        return {cell.images for cell in cells if cell.kind == "trade_off"}

    assert images(1.0) == {0.0}
    assert images(0.5, 1.0) == images(0.5) != {0.0}


def test_what_is_not_asked_for_has_no_cell(toy_benchmark: BenchmarkSettings) -> None:
    bare = replace(toy_benchmark, pairs=[], forget_methods={}, curves=Curves())
    assert {cell.kind for cell in plan(bare)} == {"heads", "models", "references", "conflict", "fusion"}


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_task_is_in_as_many_windows_as_every_other(size: int) -> None:
    tasks = ("a", "b", "c", "d", "e")
    subsets = windows(tasks, size)
    counts = Counter(task for subset in subsets for task in subset)
    assert len(set(counts.values())) == 1
    assert set(counts) == set(tasks)
    assert all(len(subset) == size and list(subset) == sorted(subset) for subset in subsets)
    assert len(set(subsets)) == len(subsets)


def test_the_description_counts_and_times(toy_benchmark: BenchmarkSettings) -> None:
    cells = [Cell("models", 0, ("a",), (), 300.0), Cell("models", 0, ("b",), (), 700.0), Cell("pair", 0)]
    text = described(replace(toy_benchmark, devices=2), cells, cells[1:], rate=10.0)
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["fine-tuning and scoring"][-5:] == ["2", "1", "700", "35", "s"]
    assert rows["together"][-5:] == ["3", "1", "700", "35", "s"]
    assert described(toy_benchmark, cells, cells, rate=None).splitlines()[-1].split()[-1] == "?"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (89.0, "89 s"), (100.0, "2 min"), (3601.0, "61 min"), (9000.0, "2 h 30 min")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_every_seed_forgets_by_fine_tunings_of_its_own() -> None:
    from types import SimpleNamespace as Simple

    for seeds in ([0, 1, 2], [5, 6, 7, 8]):
        peers = {seed: Simple(encoder=lambda task, _, seed=seed: Path(f"{task}_{seed}")) for seed in seeds}
        models = [Simple(settings=Simple(seeds=seeds), seed=seed, peers=peers) for seed in seeds]
        chosen = [
            frozenset({f"t_{own.seed}", *map(str, other_fine_tunings(own, "t"))})  # type: ignore[arg-type]
            for own in models
        ]
        assert len(set(chosen)) == len(seeds)
        assert {len(one) for one in chosen} == {len(seeds) - 1}
