"""Merges by images inside a benchmark: which images, and what they are chosen by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.kinds import every_seed
from sta_lightning.benchmark.learning import samples
from sta_lightning.benchmark.settings import BenchmarkSettings, MethodEntry
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.modules.judge import Judge


# Lightning's of the CSV log beside the TensorBoard run.
@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_they_come_nearer_to_the_fine_tuned_models_on_training_images(
    settings: BenchmarkSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = every_seed(settings)[0]
    tasks, models = own.suite.tasks, settings.models
    sources = own.sources(MethodEntry("distilled"), tasks)
    assert all(source.gram is not None for source in sources.values())
    monkeypatch.setattr(Suite, "_images", lambda *_: pytest.fail("validation and test images are not read"))
    own.suite.images = Suite._images.__get__(own.suite)  # type: ignore[method-assign]
    found = samples(own.suite, models.samples, list(tasks), 0)
    images = {task: data.batch(range(len(data))) for task, data in found.items()}
    assert {task: len(batch) for task, batch in images.items()} == dict.fromkeys(tasks, models.samples)
    judge = Judge(
        build_encoder(models.encoder, models.pretrained).eval(),
        {task: str(source.finetuned) for task, source in sources.items()},
        {task: ClassificationHead.load(str(source.head)) for task, source in sources.items()},
        images,
    )

    distilled = own.fused(MethodEntry("distilled", settings={"steps": 8}), tasks)
    assert {role.split("/")[0] for role in distilled.inputs} == {"finetuned", "gram"}
    assert own.fused(MethodEntry("regmean_plus_plus", samples=2), tasks).key["samples"] == 2
    start = own.fused(MethodEntry("swudi_a", scale=1.2), tasks)
    first, last = (judge.foretell(each.make(tmp_path)[0]).mean for each in (start, distilled))
    assert last < first

    names = ["average", "tsv", "spectral_sta"]
    auto = own.fused(MethodEntry("auto", settings={"candidates": names}), tasks)
    weights, _ = auto.make(tmp_path)
    ranking = json.loads((tmp_path / "about.json").read_text())["ranking"]
    assert {row["method"] for row in ranking} == set(names)
    assert judge.foretell(weights).mean == pytest.approx(min(row["divergence"] for row in ranking), abs=1e-4)
    best = MethodEntry(ranking[0]["method"], scale=ranking[0].get("scale"))
    expected = own.fused(best, tasks).make(tmp_path)[0]
    assert isinstance(weights, dict)
    assert isinstance(expected, dict)
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())

    monkeypatch.undo()
    own.suite.images = Suite._images.__get__(own.suite)  # type: ignore[method-assign]
    average = own.fused(MethodEntry("average"), tasks)
    (row,) = own.measured("average", [average], tasks, "test")
    assert row.foretold == judge.foretell(average.make(tmp_path)[0]).means
    fewer = every_seed(replace(settings, models=replace(models, samples=2)))[0]
    (again,) = fewer.measured("average", [fewer.fused(MethodEntry("average"), tasks)], tasks, "test")
    assert again.correct == row.correct
    assert again.foretold != row.foretold, "of other images"
    (one,) = own.measured("one", [own.finetuned(tasks[0])], tasks[:1], "test")
    assert one.foretold is None
