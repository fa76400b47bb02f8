"""The whole chain on toy tasks: its numbers against direct computation, its files, its memory of what is done."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sta_lightning import forget, fuse, load_weights
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.errors import StaError
from sta_lightning.experiment import ExperimentSettings, run
from sta_lightning.experiment.results import ExperimentResult
from sta_lightning.tasks import TaskDataModule
from sta_lightning.weights import encoder_weights, read_metadata

METHODS = (
    "zero_shot",
    "fine_tuned",
    "average",
    "task_arithmetic",
    "task_arithmetic_best",
    "random_mask",
    "sta_amp",
    "sta_lp_amp",
    "sta_lp",
)


@pytest.fixture(scope="module")
def settings(
    toy_settings: ExperimentSettings, tmp_path_factory: pytest.TempPathFactory
) -> ExperimentSettings:
    return replace(toy_settings, output=str(tmp_path_factory.mktemp("chain") / "run"))


@pytest.fixture(scope="module")
def finished(settings: ExperimentSettings) -> ExperimentResult:
    with pytest.MonkeyPatch.context() as patch:
        # TensorBoard's own figure is tested with its callback; here a dozen of them would take most
        # of the time.
        patch.setattr("sta_lightning.callbacks.board._draw", lambda *_: None)
        return run(settings)


def weights_of(settings: ExperimentSettings, path: Path) -> dict[str, Tensor]:
    names = build_encoder("miniature", settings.pretrained).state_dict()
    return dict(encoder_weights(path, names=list(names)))


def accuracy(settings: ExperimentSettings, spec: str, head: Path, weights: dict[str, Tensor]) -> float:
    """Accuracy in percent without the project's evaluation: one batch, one argmax."""
    encoder = build_encoder("miniature", settings.pretrained).eval()
    encoder.load_state_dict(weights)
    data = TaskDataModule(spec).dataset("test")
    images, labels = zip(*(data[index] for index in range(len(data))), strict=True)
    with torch.inference_mode():
        predicted = ClassificationHead.load(head)(encoder(torch.stack(images))).argmax(dim=-1)
    return 100 * float((predicted == torch.tensor(labels)).float().mean())


def test_rows_and_files_are_complete(finished: ExperimentResult) -> None:
    results = finished.results
    assert tuple(row.key for row in results.fusion) == METHODS
    assert [row.key for row in results.fusion if row.reference] == ["zero_shot", "fine_tuned"]
    assert {(row.task, row.method) for row in results.forgetting} == {
        (task, method)
        for task in ("warm", "cold")
        for method in ("pretrained", "task_arithmetic", "random_mask", "sta")
    }
    present = {path.name for path in finished.output.iterdir()}
    for name in ("fusion", "forgetting", "selection", "sweep"):
        assert {f"{name}.csv", f"{name}.png"} <= present
    assert {"report.md", "results.json", "fused.safetensors", "tensorboard"} <= present
    runs = {
        path.parent.relative_to(finished.tensorboard).as_posix()
        for path in finished.tensorboard.rglob("events.*")
    }
    assert {"finetune/warm", "finetune/cold", "fusion/sta_lp_p0.7", "forget/warm_sta"} <= runs
    assert (finished.tensorboard / "finetune" / "warm" / "metrics.csv").is_file()
    assert not list(finished.output.rglob("*.partial"))
    assert not list(finished.output.rglob("*.ckpt"))


def test_accuracies_match_direct_computation(
    settings: ExperimentSettings, finished: ExperimentResult
) -> None:
    steps = finished.output / "steps"
    base = build_encoder("miniature", settings.pretrained).state_dict()
    tuned = {
        task: weights_of(settings, steps / f"finetune/{task}/encoder.safetensors")
        for task in ("warm", "cold")
    }
    importance = {task: load_weights(steps / f"score/{task}/importance.safetensors") for task in tuned}
    heads = {name: steps / f"head/{name}/head.safetensors" for name in ("warm", "cold", "control")}
    specs = dict(zip(tuned, settings.tasks, strict=True))
    results = finished.results

    fused = fuse(base, tuned, importance, p=0.7)
    for task in tuned:
        direct = accuracy(settings, specs[task], heads[task], fused)
        assert results.row("sta_lp").accuracy[task] == pytest.approx(direct, abs=1e-4)
        own = accuracy(settings, specs[task], heads[task], tuned[task])
        assert results.row("fine_tuned").accuracy[task] == pytest.approx(own, abs=1e-4)
        zero = accuracy(settings, specs[task], heads[task], dict(base))
        assert results.row("zero_shot").accuracy[task] == pytest.approx(zero, abs=1e-4)

    written = weights_of(settings, finished.fused)
    assert all(torch.equal(written[name], fused[name]) for name in fused)
    assert json.loads(read_metadata(finished.fused)["settings"])["method"] == "sta"

    amnesic = forget(base, base, tuned["warm"], importance["warm"], p=0.7)
    row = next(row for row in results.forgetting if (row.task, row.method) == ("warm", "sta"))
    assert row.target == pytest.approx(accuracy(settings, specs["warm"], heads["warm"], amnesic), abs=1e-4)
    assert row.control == pytest.approx(
        accuracy(settings, settings.control, heads["control"], amnesic), abs=1e-4
    )


def test_recorded_bits_agree_with_the_logged_accuracy(finished: ExperimentResult) -> None:
    from sta_lightning.experiment.evaluation import unpack_all

    for row in finished.results.fusion:
        for task, bits in unpack_all(row.correct).items():
            assert len(bits) == finished.results.images["test"][task]
            assert 100 * bits.mean() == pytest.approx(row.accuracy[task], abs=1e-4)


def test_best_scale_is_the_best_of_the_grid_on_validation(
    settings: ExperimentSettings, finished: ExperimentResult
) -> None:
    points = {p.value: p.average for p in finished.results.sweep if p.method == "task_arithmetic"}
    assert set(points) == {*settings.scale_grid, settings.scale}
    best = max(points[scale] for scale in settings.scale_grid)
    assert finished.results.best_scale == min(s for s in settings.scale_grid if points[s] == best)
    assert finished.results.row("task_arithmetic_best").scale == finished.results.best_scale


def test_keeping_nothing_is_zero_shot(finished: ExperimentResult) -> None:
    (nothing,) = [p for p in finished.results.sweep if p.method == "sta" and p.value == 1.0]
    (zero,) = [p for p in finished.results.sweep if p.method == "zero_shot"]
    assert nothing.accuracy == zero.accuracy


def test_masks_of_two_tasks_keep_half_of_every_tensor(finished: ExperimentResult) -> None:
    for tensor, shares in finished.results.kept.items():
        assert sum(shares.values()) <= 1.0 + 1e-9, tensor
    assert list(next(iter(finished.results.kept.values()))) == ["warm", "cold"]  # the order of the tables


def test_tables_on_disk_hold_the_results(finished: ExperimentResult) -> None:
    rows = list(csv.DictReader((finished.output / "fusion.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["method"] for row in rows] == [row.label for row in finished.results.fusion]
    assert [float(row["average"]) for row in rows] == [row.average for row in finished.results.fusion]
    forgetting = list(
        csv.reader((finished.output / "forgetting.csv").read_text(encoding="utf-8").splitlines())
    )
    assert [row[0] for row in forgetting[1:]] == ["warm", "cold", "average"]
    assert float(forgetting[3][1]) == pytest.approx((float(forgetting[1][1]) + float(forgetting[2][1])) / 2)
    record = json.loads((finished.output / "results.json").read_text(encoding="utf-8"))
    assert record["results"]["best_scale"] == finished.results.best_scale
    assert record["settings"]["seed"] == 0
    assert {"command", "date", "hardware", "versions", "seconds"} <= set(record)
    report = finished.report.read_text(encoding="utf-8")
    for name in ("fusion", "sweep", "forgetting", "selection"):
        assert f"({name}.png)" in report
    assert "tensorboard --logdir" in report
    assert "fused.safetensors" in report


def test_a_second_run_does_nothing(
    settings: ExperimentSettings, finished: ExperimentResult, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.output.rglob("*") if p.is_file()}
    again = run(settings)
    shown = capsys.readouterr().out
    assert (again.done, again.skipped) == (0, finished.done)
    assert {p: p.stat().st_mtime_ns for p in finished.output.rglob("*") if p.is_file()} == before
    assert again.results == finished.results
    assert f"{finished.done} steps found done" in shown
    assert "STA LP" in shown
    assert "TensorBoard: tensorboard --logdir" in shown


def test_a_new_setting_redoes_only_what_depends_on_it(
    settings: ExperimentSettings, finished: ExperimentResult
) -> None:
    # One more λ to try: one evaluation; another best λ would need a second one.
    changed = run(replace(settings, scale_grid=[*settings.scale_grid, 0.3]))
    assert 1 <= changed.done <= 2
    assert changed.skipped >= finished.done - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["digits"]}, "at least two"),
        ({"tasks": ["digits", "digits"]}, "once"),
        ({"control": "digits", "tasks": ["digits", "textures"]}, "control"),
        ({"p": 1.3}, "1.3"),
        ({"p_grid": [-0.1]}, "-0.1"),
        ({"scale_grid": []}, "scale_grid"),
        ({"pretrained": "random"}, "random"),
        ({"pretrained": "${STA_NO_SUCH_VARIABLE}/x"}, "STA_NO_SUCH_VARIABLE"),
        ({"overrides": {"nonsense": {"epochs": 1}}}, "nonsense"),
        ({"roots": {"nonsense": "/x"}}, "nonsense"),
    ],
)
def test_mistakes_are_told_before_work_begins(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    asked = replace(ExperimentSettings(output=str(tmp_path / "run")), **change)  # type: ignore[arg-type]
    with pytest.raises(StaError, match=message):
        run(asked)
    assert not (tmp_path / "run" / "steps").exists()


def test_an_override_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(StaError, match="speed"):
        ExperimentSettings(overrides={"digits": {"speed": 1}})  # type: ignore[dict-item]
