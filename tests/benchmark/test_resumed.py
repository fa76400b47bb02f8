"""What a benchmark that goes on computes again, and what it keeps."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sta_lightning.benchmark.cells import Cell
from sta_lightning.benchmark.executor import unfinished
from sta_lightning.benchmark.kinds import compute
from sta_lightning.benchmark.models import Models
from sta_lightning.benchmark.plan import plan
from sta_lightning.benchmark.results import BenchmarkResults
from sta_lightning.benchmark.run import run_benchmark
from sta_lightning.benchmark.settings import BenchmarkSettings, Curves, TradeOff
from sta_lightning.weights import load_weights, read_metadata, save_weights

# Towards the end of a curve over p nothing is kept of small tensors.
pytestmark = pytest.mark.filterwarnings("ignore:The masks keep nothing")


def left(settings: BenchmarkSettings) -> set[str]:
    return {cell.id for cell in unfinished(settings, plan(settings))}


def test_a_run_that_is_done_computes_nothing(
    copied: tuple[BenchmarkSettings, BenchmarkResults], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, results = copied
    assert left(settings) == set()
    monkeypatch.setattr("sta_lightning.benchmark.models.classified", None)
    again = run_benchmark(settings)
    assert again.fusion == results.fusion
    assert again.forgetting == results.forgetting
    assert again.curves == results.curves


def test_a_changed_checkpoint_is_computed_again_and_nothing_else(
    copied: tuple[BenchmarkSettings, BenchmarkResults],
) -> None:
    settings, _ = copied

    given = replace(settings, finetuned=str(Path(settings.output) / "given/{task}_{seed}.safetensors"))
    for seed in (0, 1):
        for task in ("warm", "cold"):
            source = Path(settings.output) / f"seed_{seed}/steps/finetune/{task}/encoder.safetensors"
            target = Path(str(given.finetuned).format(task=task, seed=seed))
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
    assert left(given) == set()  # the same contents in another place
    changed = Path(str(given.finetuned).format(task="cold", seed=1))
    weights = {name: 1.01 * tensor for name, tensor in load_weights(changed).items()}
    metadata = {k: v for k, v in read_metadata(changed).items() if k != "weights_sha256"}
    save_weights(changed, weights, metadata)
    waiting = left(given)
    # The trade-off waits for the table's rows, whose NegMerge reads the other seed.
    others = {"seed_0/forgetting/cold", "seed_0/trade_off/cold"}
    assert all("seed_1" in cell or cell in others for cell in waiting)
    assert "seed_1/fusion/average" in waiting
    assert "seed_0/forgetting/cold" in waiting  # NegMerge reads several fine-tunings of the task
    assert not {"seed_1/heads", "seed_1/models/warm", "seed_0/fusion/average"} & waiting


def test_another_grid_changes_the_tuned_row_alone(
    copied: tuple[BenchmarkSettings, BenchmarkResults],
) -> None:
    settings, _ = copied
    methods = {**settings.methods, "ta": replace(settings.methods["ta"], tune={"scale": [0.1, 0.2]})}
    assert left(replace(settings, methods=methods)) == {"seed_0/fusion/ta", "seed_1/fusion/ta"}
    trade_off = TradeOff({"ta": {"scale": [0.5]}})
    assert left(replace(settings, trade_off=trade_off)) == {
        f"seed_{seed}/trade_off/{task}" for seed in (0, 1) for task in ("warm", "cold")
    }


def test_force_computes_everything_again(
    copied: tuple[BenchmarkSettings, BenchmarkResults],
) -> None:
    settings, results = copied
    few = {key: settings.methods[key] for key in ("average", "sta_lp")}
    bare = replace(
        settings, seeds=[0], methods=few, pairs=[], forget_methods={}, trade_off=TradeOff(), curves=Curves()
    )
    record = Path(settings.output) / "seed_0/steps/fusion/average/published/step.json"
    before = record.stat().st_mtime_ns
    again = run_benchmark(replace(bare, devices=2), force=True)
    assert record.stat().st_mtime_ns > before
    assert again.fused("sta_lp", "published") == results.fused("sta_lp", "published")[:1]


def test_what_was_finished_before_an_interruption_is_kept(
    settings: BenchmarkSettings,
    no_report: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(seeds: dict[int, Models], cell: Cell) -> object:
        if cell.id == "seed_0/fusion/regmean":
            raise KeyboardInterrupt
        return compute(seeds, cell)

    small = replace(settings, seeds=[0], forget_methods={}, trade_off=TradeOff())
    monkeypatch.setattr("sta_lightning.benchmark.executor.compute", stop)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(small)
    assert "the same command goes on from there" in capsys.readouterr().out
    monkeypatch.undo()
    waiting = left(small)
    assert "seed_0/fusion/regmean" in waiting
    assert not {"seed_0/models/warm", "seed_0/fusion/average", "seed_0/fusion/ta"} & waiting
    run_benchmark(small)
    assert left(small) == set()


def test_levels_and_a_curve_over_p_can_be_of_validation_images(
    copied: tuple[BenchmarkSettings, BenchmarkResults],
) -> None:
    settings, results = copied
    few = {key: settings.methods[key] for key in ("average", "sta_lp")}
    curves = replace(settings.curves, p_split="validation", samples=[], tasks=[], scale_methods=[])
    bare = replace(settings, seeds=[0], methods=few, pairs=[], forget_methods={}, trade_off=TradeOff())
    found = run_benchmark(replace(bare, curves=curves))
    points = {(p.curve, p.method, p.x): p for p in found.curves}
    assert {p.split for p in found.curves} == {"validation"}
    # p = 1 keeps no entry; the level was measured with the whole benchmark.
    assert points["p", "sta_lp", 1.0].accuracy == points["level", "zero_shot", 0.0].accuracy
    assert points["level", "average", 0.0] in results.curves
