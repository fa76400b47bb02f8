"""A benchmark of toys from settings to report: numbers, resuming, what is computed again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sta_lightning.arithmetic import average, fuse, negate
from sta_lightning.benchmark.cells import Cell
from sta_lightning.benchmark.entries import needs_no_coefficient
from sta_lightning.benchmark.executor import Done, run_cells, unfinished
from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.kinds import compute, other_fine_tunings
from sta_lightning.benchmark.models import Models
from sta_lightning.benchmark.plan import plan
from sta_lightning.benchmark.results import BenchmarkResults
from sta_lightning.benchmark.run import dry_run, run_benchmark
from sta_lightning.benchmark.scoring import HEAD, SCORES, make_head, make_scores
from sta_lightning.benchmark.settings import BenchmarkSettings, Curves, TradeOff
from sta_lightning.callbacks.board import RESULTS
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.errors import StaError
from sta_lightning.modules.parts import read_encoder
from sta_lightning.weights import load_weights, read_metadata
from tests.toys import entered

# Towards the end of a curve over p nothing is kept of small tensors.
pytestmark = pytest.mark.filterwarnings("ignore:The masks keep nothing")


@pytest.fixture(scope="module")
def done(
    toy_benchmark: BenchmarkSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BenchmarkSettings, BenchmarkResults]:
    """A benchmark that was run."""
    settings = replace(toy_benchmark, output=str(tmp_path_factory.mktemp("done") / "benchmark"))
    return settings, run_benchmark(settings)


@pytest.fixture
def no_report() -> Iterator[None]:
    """Leaves out the drawing of figures, which takes longer than these benchmarks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sta_lightning.benchmark.run.write_board", lambda results, folder: None)
        patch.setattr("sta_lightning.benchmark.run.write_report", lambda results, output: output)
        yield


@pytest.fixture
def copied(
    done: tuple[BenchmarkSettings, BenchmarkResults], no_report: None, tmp_path: Path
) -> tuple[BenchmarkSettings, BenchmarkResults]:
    """The same in a folder of the test's own."""
    settings, results = done
    folder = tmp_path / "copy"
    shutil.copytree(settings.output, folder)
    return replace(settings, output=str(folder)), results


def left(settings: BenchmarkSettings) -> set[str]:
    return {cell.id for cell in unfinished(settings, plan(settings))}


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
    from sta_lightning.weights import save_weights

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


def test_changed_pictures_are_computed_again(
    copied: tuple[BenchmarkSettings, BenchmarkResults], tmp_path: Path
) -> None:
    settings, _ = copied
    warm, cold = settings.models.tasks
    moved = tmp_path / "moved"
    folder = Path(warm).parent / "warm"
    shutil.copytree(folder, moved)  # with the files' times
    description = tmp_path / "warm.yaml"
    description.write_text(Path(warm).read_text().replace(str(folder), str(moved)))
    picture = next((moved / "test").rglob("*.png"))
    picture.write_bytes(picture.read_bytes() + b" ")
    before = Suite(settings.models)
    after = Suite(replace(settings.models, tasks=[str(description), cold]))
    for split, name, same in (("test", "warm", False), ("train", "warm", True), ("test", "cold", True)):
        known = [suite.identity(split, name)["tasks"][name][-1] for suite in (before, after)]  # type: ignore[arg-type]
        assert (known[0] == known[1]) == same


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


def test_every_seed_forgets_by_fine_tunings_of_its_own() -> None:
    from types import SimpleNamespace as Simple

    for seeds in ([0, 1, 2], [5, 6, 7, 8]):
        peers = {seed: Simple(encoder=lambda task, seed=seed: Path(f"{task}_{seed}")) for seed in seeds}
        models = [Simple(settings=Simple(seeds=seeds), seed=seed, peers=peers) for seed in seeds]
        chosen = [
            frozenset({f"t_{own.seed}", *map(str, other_fine_tunings(own, "t"))})  # type: ignore[arg-type]
            for own in models
        ]
        assert len(set(chosen)) == len(seeds)
        assert {len(one) for one in chosen} == {len(seeds) - 1}


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


def test_two_processes_find_what_one_does(
    done: tuple[BenchmarkSettings, BenchmarkResults], tmp_path: Path
) -> None:
    settings, results = done
    two = replace(settings, output=str(tmp_path / "two"), devices=2)
    cells = plan(two)
    found = run_cells(two, cells)
    assert list(found) == [cell.id for cell in cells]
    check_same_numbers(found, results)


def check_same_numbers(found: dict[str, Done], results: BenchmarkResults) -> None:
    """What was computed elsewhere is what one process computes, to the last bit."""
    assert [row for done in found.values() for row in done.found.fusion] == list(results.fusion)
    assert [row for done in found.values() for row in done.found.forgetting] == list(results.forgetting)
    extra = {name: value for done in found.values() for name, value in done.found.extra.items()}
    digests = {name: value for name, value in extra.items() if name.startswith("hash/")}
    assert {name.removeprefix("hash/"): value for name, value in digests.items()} == results.record["hashes"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks processes up in /proc")
def test_a_killed_run_leaves_no_process_at_work(settings: BenchmarkSettings, tmp_path: Path) -> None:
    """The processes among which cells are shared out end with the one that shares."""
    description = {
        **{name: getattr(settings.models, name) for name in ("pretrained", "tasks", "control")},
        "epochs": 1000,
    }
    config = {
        "output": settings.output,
        "devices": 2,
        "models": description,
        "methods": {"average": {"method": "average"}},
    }
    file = tmp_path / "endless.yaml"
    file.write_text(yaml.safe_dump(config))
    running = subprocess.Popen(
        [sys.executable, "-m", "sta_lightning", "benchmark", "--config", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        steps = Path(settings.output) / "seed_0/steps/finetune"
        wait_for(lambda: len(list(steps.glob("*.partial"))) == 2)
        children = children_of(running.pid)
        assert len(children) >= 2
    finally:
        running.kill()
        running.wait()
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def children_of(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    """Against hangs: nothing is said of how long it takes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_what_a_cell_refuses_ends_the_run_with_its_words(settings: BenchmarkSettings) -> None:
    given = replace(settings, finetuned=str(Path(settings.output) / "{task}_{seed}.safetensors"))
    for devices in (1, 2):
        with pytest.raises(StaError, match=r"the encoder of task '(warm|cold)', seed [01], is not there"):
            run_benchmark(replace(given, devices=devices))


def test_a_dry_run_tells_and_writes_nothing(settings: BenchmarkSettings) -> None:
    text = dry_run(settings)
    assert "images a second and process, measured now" in text
    assert "forgetting (Table 3)" in text
    assert not Path(settings.output).exists()


def test_the_control_chooses_on_images_that_are_never_tested(settings: BenchmarkSettings) -> None:
    """Where a control has test images alone, a part of them is set aside."""
    assert len(Suite(settings.models).images("control", "validation")) == 9
    only_test = (
        Path(settings.models.control)
        .read_text()
        .replace("train: train\n", "")
        .replace("validation: validation\n", "")
    )
    file = Path(settings.output).parent / "only_test.yaml"
    file.write_text(only_test)
    suite = Suite(replace(settings.models, control=str(file)))
    test, aside = suite.images("control", "test"), suite.images("control", "validation")
    assert suite.identity("train", "control")["tasks"]["control"][-1] is None
    tested = suite.identity("validation", "control")["tasks"]["control"]
    other = Suite(replace(settings.models, control=str(file), control_limit=6))
    assert tested != other.identity("validation", "control")["tasks"]["control"]
    assert (len(test), len(aside)) == (11, 1)
    # What `spared` reads of it is the part that is set aside.
    assert Suite(settings.models).scored("control") == "train"
    head, scores = file.parent / "head", file.parent / "scores"
    for folder in (head, scores):
        folder.mkdir()
    make_head(suite, "control", head)
    make_scores(suite, "control", 0, "gram", 1, None, head / HEAD, scores)
    assert load_weights(scores / SCORES)
    images = [test[index][0] for index in range(len(test))]
    assert not any(torch.equal(aside[0][0], image) for image in images)


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
