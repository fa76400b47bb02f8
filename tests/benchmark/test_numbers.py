"""The numbers of a benchmark of toys: all are there, and each is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sta_lightning.arithmetic import average, fuse, negate
from sta_lightning.benchmark.entries import needs_no_coefficient
from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.results import BenchmarkResults
from sta_lightning.benchmark.settings import BenchmarkSettings
from sta_lightning.callbacks.board import RESULTS
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.modules.parts import read_encoder
from sta_lightning.weights import load_weights, read_metadata
from tests.toys import entered

# Towards the end of a curve over p nothing is kept of small tensors.
pytestmark = pytest.mark.filterwarnings("ignore:The masks keep nothing")


def test_every_number_is_there(done: tuple[BenchmarkSettings, BenchmarkResults]) -> None:
    settings, results = done
    assert results.tasks == ("warm", "cold")
    rows = {(row.method, row.setting, row.seed) for row in results.fusion}
    methods = {"zero_shot", "fine_tuned", *settings.methods}
    assert rows == {(key, "published", seed) for key in methods for seed in (0, 1)} | {
        ("ta", "tuned", seed) for seed in (0, 1)
    }
    assert {(row.method, row.seed) for row in results.pairs} == {
        (key, seed) for key in ("sta_lp", "ta") for seed in (0, 1)
    }
    forgotten = {(row.method, row.setting, row.task) for row in results.forgetting if row.seed == 0}
    assert {key for key, _, _ in forgotten} == {"pretrained", "ta", "negmerge", "spared", "sta_lp"}
    assert {(key, task) for key, setting, task in forgotten if setting == "tuned"} == {
        ("ta", "warm"),
        ("ta", "cold"),
    }
    assert {(point.curve, point.method) for point in results.curves} == {
        ("p", "sta_lp"),
        ("samples", "sta_lp"),
        ("tasks", "ta"),
        ("scale", "ta"),
        ("level", "zero_shot"),
        ("level", "average"),
    }
    assert {(point.method, point.seed, point.x) for point in results.trade_off} == {
        ("ta", seed, x) for seed in (0, 1) for x in (0.0, 1.0)
    }
    assert set(results.conflict) == {"warm", "cold"}
    assert results.kept
    assert results.images["test"] == {"warm": 12, "cold": 12, "control": 12}
    output = Path(settings.output)
    assert {"report.html", "report.md", "results.json", "tensorboard"} <= {
        path.name for path in output.iterdir()
    }
    written = json.loads((output / "results.json").read_text())
    assert written["fusion"] == json.loads(json.dumps(results.to_json()["fusion"]))
    assert len(written["record"]["hashes"]) == 4
    assert not list(output.rglob("*.partial"))


def direct(settings: BenchmarkSettings, weights: dict[str, torch.Tensor], task: str) -> float:
    """Accuracy in percent, image by image."""
    encoder = build_encoder(settings.models.encoder, settings.models.pretrained).eval()
    encoder.load_state_dict(weights)
    data = Suite(settings.models).images(task, "test")
    images, labels = zip(*(data[index] for index in range(len(data))), strict=True)
    head = ClassificationHead.load(Path(settings.output) / f"seed_0/steps/head/{task}/head.safetensors")
    with torch.inference_mode():
        predicted = head(encoder(torch.stack(images))).argmax(dim=-1)
    return 100 * float((predicted == torch.tensor(labels)).float().mean())


def test_numbers_match_direct_computation(done: tuple[BenchmarkSettings, BenchmarkResults]) -> None:
    settings, results = done
    steps = Path(settings.output) / "seed_0/steps"
    base = build_encoder(settings.models.encoder, settings.models.pretrained).state_dict()
    tuned = {
        task: read_encoder(steps / f"finetune/{task}/encoder.safetensors", base, task)
        for task in results.tasks
    }
    scores = {task: load_weights(steps / f"scores/{task}/lp_4/scores.safetensors") for task in tuned}
    for key, weights in (("average", average(base, tuned)), ("sta_lp", fuse(base, tuned, scores))):
        (row,) = (row for row in results.fused(key, "published") if row.seed == 0)
        for task in results.tasks:
            assert row.accuracy[task] == pytest.approx(direct(settings, weights, task), abs=1e-4)
    amnesic = negate(base, base, tuned["warm"], scale=1.0)
    (row,) = (
        row
        for row in results.forgetting
        if (row.method, row.setting, row.task, row.seed) == ("ta", "published", "warm", 0)
    )
    assert row.target == pytest.approx(direct(settings, amnesic, "warm"), abs=1e-4)
    assert row.control == pytest.approx(direct(settings, amnesic, "control"), abs=1e-4)


def test_the_same_model_has_the_same_numbers_everywhere(
    done: tuple[BenchmarkSettings, BenchmarkResults],
) -> None:
    _, results = done
    for seed in (0, 1):
        (whole,) = (row for row in results.fused("ta", "published") if row.seed == seed)
        (pair,) = (row for row in results.pairs if (row.method, row.seed) == ("ta", seed))
        assert pair.accuracy == whole.accuracy  # there are but two tasks
        (point,) = (p for p in results.curves if (p.curve, p.seed) == ("tasks", seed))
        assert point.average == pytest.approx(whole.average)
        curve = {p.x: p.average for p in results.curves if (p.curve, p.seed) == ("p", seed)}
        (zero,) = (row for row in results.fused("zero_shot", "published") if row.seed == seed)
        assert curve[1.0] == pytest.approx(zero.average)  # p = 1 keeps nothing
        assert curve[0.0] == curve[0.3]  # one rank
        nothing = next(p for p in results.trade_off if (p.seed, p.x) == (seed, 0.0))
        assert nothing.target == pytest.approx(zero.average)  # γ = 0 forgets nothing
        rows = [r for r in results.forgetting if (r.method, r.setting, r.seed) == ("ta", "published", seed)]
        row = next(p for p in results.trade_off if (p.seed, p.x) == (seed, 1.0))
        assert (row.target, row.control) == (fmean(r.target for r in rows), fmean(r.control for r in rows))


def test_the_tuned_setting_is_the_best_on_validation_images(
    done: tuple[BenchmarkSettings, BenchmarkResults],
) -> None:
    _, results = done
    for row in results.fused("ta", "tuned"):
        grid = {p.x: p.average for p in results.curves if (p.curve, p.seed) == ("scale", row.seed)}
        assert row.validation == max(grid.values())
        assert grid[row.chosen["scale"]] == row.validation


def test_rows_of_one_seed_are_compared_image_by_image(
    done: tuple[BenchmarkSettings, BenchmarkResults],
) -> None:
    _, results = done
    for seed in results.seeds:
        averages = {
            (row.method, row.setting): row.average
            for row in results.fusion
            if row.seed == seed and row.method not in ("zero_shot", "fine_tuned")
        }
        best = max(averages.values())
        for (method, setting), own in averages.items():
            run = (method, setting, seed)
            found = [pair for pair in results.paired if (pair.method, pair.setting, pair.seed) == run]
            others = {(pair.other, pair.other_setting) for pair in found}
            assert ("random_mask", "published") in others or method == "random_mask"
            assert own == best or any(averages[other] == best for other in others)
            for pair in found:
                expected = own - averages[pair.other, pair.other_setting]
                assert pair.difference == pytest.approx(expected, abs=1e-4)
                assert pair.error >= 0.0


def test_the_chosen_model_is_handed_out_as_it_was_evaluated(
    done: tuple[BenchmarkSettings, BenchmarkResults],
) -> None:
    settings, results = done
    free = [key for key, entry in settings.methods.items() if needs_no_coefficient(entry)]
    assert "ta" not in free, "its coefficient was tuned"
    averages = {key: fmean(row.average for row in results.fused(key, "published")) for key in free}
    best = max(averages, key=averages.__getitem__)
    assert results.record["published"] == {"fused.safetensors": best, "fused_sta.safetensors": "sta_lp"}
    base = build_encoder(settings.models.encoder, settings.models.pretrained).state_dict()
    for file, key in results.record["published"].items():
        published = Path(settings.output) / file
        assert json.loads(read_metadata(published)["settings"])["method"] == settings.methods[key].method
        weights = read_encoder(published, base, "the fused model")
        row = results.fused(key, "published")[0]
        for task in results.tasks:
            assert row.accuracy[task] == pytest.approx(direct(settings, weights, task), abs=1e-4)
        assert row.seconds is not None
        assert 0 < row.seconds < 600
    # Of task arithmetic it is the coefficient.
    (plain,) = (row for row in results.fused("ta", "published") if row.seed == settings.seeds[0])
    assert plain.norm == pytest.approx(settings.methods["ta"].scale, rel=1e-3)


def test_tensorboard_has_a_run_for_every_row_and_a_curve_for_every_sweep(
    done: tuple[BenchmarkSettings, BenchmarkResults],
) -> None:
    settings, results = done
    folder = Path(settings.output) / "tensorboard" / "benchmark"

    def read(run: str) -> EventAccumulator:
        return EventAccumulator(str(folder / run), size_guidance={"images": 0, "tensors": 0}).Reload()

    for row in results.fusion:
        events = read(f"fusion/{row.method}_{row.setting}/seed_{row.seed}")
        given, metrics = entered(events)
        assert metrics == RESULTS
        assert (given["method"], given["seed"]) == (results.method(row.method).label, row.seed)
        assert {name: given.get(name) for name in row.chosen if name in ("p", "scale", "measure")} == {
            name: value for name, value in row.chosen.items() if name in ("p", "scale", "measure")
        }
        (point,) = events.Scalars("accuracy/average")
        assert point.value == pytest.approx(row.average / 100)
    events = read("forgetting/sta_lp_published/seed_1")
    rows = [row for row in results.forgetting if (*row.run, row.seed) == ("sta_lp", "published", 1)]
    assert events.Scalars("accuracy/target")[0].value == pytest.approx(fmean(r.target for r in rows) / 100)
    assert entered(events)[0].items() >= {"measure": "lp", "p": 0.7, "seed": 1}.items()
    curve = read("sweep/p/sta_lp/seed_0").Scalars("sweep/average against 100 p")
    assert [event.step for event in curve] == [0, 30, 100]
    assert [
        event.step for event in read("sweep/samples/sta_lp/seed_0").Scalars("sweep/average against samples")
    ] == [1, 2]
    assert len(read("sweep/trade_off/ta/seed_0").Scalars("sweep/control against 100 γ")) == 2
    tags = read("report").Tags()
    assert sorted(tags["images"])[0] == "figures/01_fusion"
    shown = {tag.split("_", 1)[1] for tag in tags["images"]}
    assert {"fusion", "forgetting", "trade_off"} <= shown
    assert {"report/text_summary", "command/text_summary"} <= set(tags["tensors"])
