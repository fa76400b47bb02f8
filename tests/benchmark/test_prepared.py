"""Rows on fits that prepare a model: their own models and references; plain cells stay done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sta_lightning.benchmark.checks import check_settings
from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.models import Models
from sta_lightning.benchmark.progress import quiet
from sta_lightning.benchmark.report.numbers import kept_accuracy
from sta_lightning.benchmark.report.tables import fusion_grid
from sta_lightning.benchmark.run import run_benchmark
from sta_lightning.benchmark.settings import BenchmarkSettings, Curves, MethodEntry, TradeOff
from sta_lightning.callbacks import SpareControl
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier
from sta_lightning.modules.linearised import linearised_features
from sta_lightning.modules.parts import QUIET, read_encoder
from sta_lightning.weights import load_weights

KINDS = ("linearised", "spare")


@pytest.fixture
def plain(settings: BenchmarkSettings, monkeypatch: pytest.MonkeyPatch) -> BenchmarkSettings:
    """Few rows, no pictures."""
    monkeypatch.setattr("sta_lightning.benchmark.run.write_board", lambda results, folder: None)
    monkeypatch.setattr("sta_lightning.benchmark.run.write_report", lambda results, output: output)
    return replace(
        settings,
        seeds=[0],
        methods={"average": MethodEntry("average"), "regmean": MethodEntry("regmean", group="data")},
        forget_methods={"ta": MethodEntry("task_arithmetic")},
        **{"pairs": [], "curves": Curves(), "trade_off": TradeOff(), "selection": None, "publish": {}},
    )


def prepared(plain: BenchmarkSettings) -> BenchmarkSettings:
    return replace(
        plain,
        methods={
            **plain.methods,
            "linearised": MethodEntry("average", finetuning="linearised"),
            "tangent": MethodEntry("average", finetuning="linearised", tangent=True),
            "regmean_spare": MethodEntry("regmean", group="data", finetuning="spare"),
        },
        forget_methods={
            **plain.forget_methods,
            "ta_tangent": MethodEntry("task_arithmetic", finetuning="linearised", tangent=True),
        },
    )


def accuracy(models: Models, features: Tensor, task: str) -> float:
    head = ClassificationHead.load(models.head(task)).eval()
    labels = torch.tensor([label for _, label in models.suite.images(task, "test")])
    return 100 * float((head(features).argmax(dim=-1) == labels).float().mean())


def test_a_row_is_of_its_own_fits_and_the_others_stay_done(plain: BenchmarkSettings) -> None:
    before = run_benchmark(plain)
    settings = prepared(plain)
    stamps = {p: p.stat().st_mtime_ns for p in Path(settings.output).rglob("step.json")}
    results = run_benchmark(settings)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    rows = {row.method: row for row in results.fusion}
    for row in before.fusion:
        assert rows[row.method] == row
    references = ("fine_tuned", "fine_tuned_linearised", "fine_tuned_linearised_tangent", "fine_tuned_spare")
    assert [info.key for info in results.methods if info.group == "reference"] == ["zero_shot", *references]

    suite = Suite(settings.models)
    models = Models(settings, suite, 0, {}, compute=False)
    origin = build_encoder("miniature", settings.models.pretrained).eval()
    start = dict(origin.state_dict())
    states = {
        kind: [read_encoder(models.encoder(task, kind), start, task) for task in suite.tasks]
        for kind in ("plain", *KINDS)
    }
    for kind in KINDS:
        assert any(not torch.equal(states[kind][0][name], states["plain"][0][name]) for name in start)
    mean = {name: torch.stack([state[name] for state in states["linearised"]]).mean(0) for name in start}
    without = {name: 2 * start[name] - states["linearised"][0][name] for name in start}
    network = build_encoder("miniature", settings.models.pretrained).eval()
    (forgotten,) = [
        row for row in results.forgetting if (row.method, row.task) == ("ta_tangent", suite.tasks[0])
    ]
    with torch.no_grad():
        for number, task in enumerate(suite.tasks):
            images = torch.stack([image for image, _ in suite.images(task, "test")])
            network.load_state_dict(mean)
            assert rows["linearised"].accuracy[task] == pytest.approx(accuracy(models, network(images), task))
            for key, weights in (("tangent", mean), (references[2], states["linearised"][number])):
                found = accuracy(models, linearised_features(origin, weights, images), task)
                assert rows[key].accuracy[task] == pytest.approx(found)
        images = torch.stack([image for image, _ in suite.images(suite.tasks[0], "test")])
        found = accuracy(models, linearised_features(origin, without, images), suite.tasks[0])
        assert forgotten.target == pytest.approx(found)
    assert rows["linearised"].divergence is not None
    assert rows["tangent"].divergence is None

    shares = kept_accuracy(results)
    for key, reference in {"average": 0, "linearised": 1, "tangent": 2, "regmean_spare": 3}.items():
        own, bound = rows[key].accuracy, rows[references[reference]].accuracy
        wanted = sum(100 * own[task] / bound[task] for task in own) / len(own)
        assert shares.mean((key, "published")) == pytest.approx(wanted)
    assert "fine-tuned (linearised, tangent), each on its own task" in fusion_grid(results).terminal()


def test_a_fit_that_spares_is_the_callback_s(plain: BenchmarkSettings, tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    suite = Suite(plain.models)
    models = Models(plain, suite, 0, {})
    task, settings = suite.tasks[0], plain.models
    module = CLIPClassifier(
        task=suite.members[task].spec,
        pretrained=settings.pretrained,
        head=str(models.head(task)),
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
    )
    gram = models.statistic(suite.control, "gram", settings.samples)
    spare = SpareControl(str(gram), settings.spare_weight)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        gradient_clip_val=1.0,
        callbacks=[spare],
        num_sanity_val_steps=0,
        **QUIET,
    )
    trainer.fit(module, suite.datamodule(task, 0))
    with quiet():
        found = load_weights(models.encoder(task, "spare"))
    for name, tensor in module.encoder.state_dict().items():
        torch.testing.assert_close(found[f"visual.{name}"], tensor, rtol=0, atol=1e-6)


def test_a_kind_that_is_not_there_is_refused(settings: BenchmarkSettings) -> None:
    odd = {"average": MethodEntry("average", finetuning="linear")}  # type: ignore[arg-type]
    with pytest.raises(StaError, match="finetuning: 'plain', 'linearised', 'spare'; found 'linear'"):
        check_settings(replace(settings, methods={**settings.methods, **odd}))
    with pytest.raises(StaError, match="finetuned: the encoders are there already, and rows ask for"):
        check_settings(replace(prepared(settings), finetuned="{task}_{seed}.safetensors"))
