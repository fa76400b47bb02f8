"""Scoring in bfloat16, its agreement with float32, and what the file says of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr

from sta_lightning.callbacks import score
from sta_lightning.modules import CLIPClassifier
from sta_lightning.tasks import TaskDataModule
from sta_lightning.weights import all_bounds, load_weights, read_bounds, read_metadata
from tests.toys import quiet_trainer

SAMPLES = 5


def settings(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(read_metadata(path)["settings"])
    return found


@pytest.fixture
def data() -> TaskDataModule:
    return TaskDataModule("spots", batch_size=4)


@pytest.fixture
def module(pretrained: Path) -> CLIPClassifier:
    return CLIPClassifier(task="spots", pretrained=str(pretrained), learning_rate=1e-3, warmup_steps=1)


@pytest.mark.parametrize("measure", ["lp", "lp+amp"])
def test_bf16_and_its_agreement_are_recorded(
    measure: str, module: CLIPClassifier, data: TaskDataModule, tmp_path: Path
) -> None:
    exact, near, plain = (tmp_path / f"{name}.safetensors" for name in ("exact", "near", "plain"))
    score(quiet_trainer(), module, data, output=exact, samples=SAMPLES, measure=measure)
    for path, report in ((near, True), (plain, False)):
        score(
            quiet_trainer(),
            module,
            data,
            output=path,
            samples=SAMPLES,
            measure=measure,
            precision="bf16",
            report_agreement=report,
        )
    assert settings(exact)["precision"] == "float32"
    assert settings(near)["precision"] == settings(plain)["precision"] == "bf16"
    first, second, third = load_weights(exact), load_weights(near), load_weights(plain)
    assert all(torch.equal(second[name], third[name]) for name in second), "the report changes nothing"
    assert not all(torch.equal(second[name], first[name]) for name in second)
    assert all(tensor.dtype == torch.float32 for tensor in second.values())

    assert "agreement" not in read_metadata(exact)
    assert "agreement" not in read_metadata(plain)
    found = json.loads(read_metadata(near)["agreement"])
    assert (found["with"], found["p"]) == ("float32", 0.7)
    name = found["spearman"]["tensor"]
    least = float(spearmanr(first[name].flatten(), second[name].flatten()).statistic)
    assert found["spearman"]["least"] == pytest.approx(least, abs=1e-9)
    assert least < found["spearman"]["mean"] <= 1
    assert 0.5 < found["kept"]["least"] <= found["kept"]["mean"] <= 1


def test_the_file_tells_its_bounds(module: CLIPClassifier, data: TaskDataModule, tmp_path: Path) -> None:
    for measure in ("lp", "amp"):
        path = score(
            quiet_trainer(),
            module,
            data,
            output=tmp_path / "i.safetensors",
            samples=2,
            measure=measure,
        )
        found = read_bounds(read_metadata(path))
        assert found == all_bounds(load_weights(path))
        assert found
    assert "precision" not in settings(path), "the squared weights need no pass"
