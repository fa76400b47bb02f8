"""Forgetting from files: what the arithmetic makes of the loaded models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sta_lightning.arithmetic import FORGET_METHODS, forget, make_method, negate, unlearn
from sta_lightning.arithmetic import run as run_module
from sta_lightning.arithmetic import states as states_module
from sta_lightning.engine import ForgettingJob
from sta_lightning.errors import StaError
from sta_lightning.kernels import build
from sta_lightning.weights import TensorFile, load_weights, read_metadata, save_weights, sha256
from sta_lightning.weights.leased import LeasedMap
from tests.engine.models import PREFIX, Models, prefixed, state, write_models

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return write_models(tmp_path / "models", 2)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "new" / "forgotten.safetensors"


def job(models: Models, method: str = "sta", *, model: Path | None = None, **how: Any) -> ForgettingJob:
    made = make_method(method, FORGET_METHODS, scale=how.pop("scale", None), p=how.pop("p", 0.7))
    return ForgettingJob(
        "task1", models.tasks["task1"], method, made, model=None if model is None else str(model), **how
    )


def wanted(
    models: Models, method: str, model: dict[str, Tensor], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    match method:
        case "sta":
            return forget(model, models.base, models.finetuned["task1"], models.scores["task1"], dtype=dtype)
        case "random_mask":
            return unlearn("random_mask", model, models.base, models.finetuned["task1"], dtype=dtype).weights
    return negate(model, models.base, models.finetuned["task1"], dtype=dtype)


def assert_written(path: Path, expected: dict[str, Tensor]) -> None:
    found = load_weights(path)
    assert found.keys() == prefixed(expected).keys()
    for name, value in prefixed(expected).items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("stored", [None, F32, F16, BF16])
@pytest.mark.parametrize("method", ["sta", "random_mask", "task_arithmetic"])
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_it_is_what_the_arithmetic_makes(
    compiled: bool,
    method: str,
    stored: torch.dtype | None,
    models: Models,
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 100)
    model, path = models.base, None
    if stored is not None:
        model, path = state(77, stored), tmp_path / "model.safetensors"
        save_weights(path, prefixed(model))
    if compiled:
        monkeypatch.setattr(build, "PAYS", 0)
    else:
        monkeypatch.setattr(run_module, "_native", lambda *_: (None, None))
    expected = wanted(models, method, model, stored)
    made = job(models, method, model=path)
    kept = made.write(models.pretrained, output)
    assert_written(output, expected)
    merged = made.in_memory(models.pretrained)
    assert all(torch.equal(merged.weights[name], value) for name, value in expected.items())
    assert merged.kept == kept
    assert bool(kept) == (method != "task_arithmetic")
    assert all(list(shares) == ["task1"] for shares in kept.values())


def test_the_type_may_be_chosen(models: Models, output: Path, tmp_path: Path) -> None:
    model = state(77, F16)
    save_weights(tmp_path / "model.safetensors", model)
    job(models, model=tmp_path / "model.safetensors", dtype=BF16).write(models.pretrained, output)
    assert_written(output, wanted(models, "sta", model, BF16))


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_the_importance_is_read_once(
    compiled: bool, tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeasedMap, "address", lambda _: None)  # a map is not read by calls
    shapes = {"large.weight": (100, 5000), "small.bias": (9,)}
    models = write_models(tmp_path / "large", 2, shapes=shapes)
    size = sum(tensor.nbytes for tensor in models.scores["task1"].values())
    read: dict[str, int] = {}
    inherited = TensorFile.read_into

    def read_into(self: TensorFile, buffer: memoryview, offset: int) -> None:
        read[self.path.name] = read.get(self.path.name, 0) + buffer.nbytes
        inherited(self, buffer, offset)

    monkeypatch.setattr(TensorFile, "read_into", read_into)
    if compiled:
        monkeypatch.setattr(build, "PAYS", 0)
    else:
        monkeypatch.setattr(run_module, "_native", lambda *_: (None, None))
    job(models).write(models.pretrained, output)
    assert size <= read["task1-importance.safetensors"] < size + 10_000  # and the header
    assert_written(output, wanted(models, "sta", models.base, F32))


def test_a_pretrained_encoder_in_half_precision_stays_so(tmp_path: Path, output: Path) -> None:
    models = write_models(tmp_path / "half", 2, base_dtype=F16, dtypes=(F16,))
    job(models).write(models.pretrained, output)
    assert_written(output, wanted(models, "sta", models.base, F16))


def test_bounds_in_the_importance_file_change_nothing(tmp_path: Path, output: Path) -> None:
    found = []
    for known in (True, False):
        models = write_models(tmp_path / f"models{known}", 2, known_bounds=known)
        job(models).write(models.pretrained, output)
        found.append(load_weights(output))
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


@pytest.mark.parametrize("measure", ["amp", "delta-amp", "lp+amp"])
def test_measures(measure: str, models: Models, output: Path) -> None:
    finetuned = {name: value for name, value in models.finetuned["task1"].items() if name != "steps"}
    scores = {
        "amp": {name: value**2 for name, value in finetuned.items()},
        "delta-amp": {name: (value - models.base[name]) ** 2 for name, value in finetuned.items()},
        "lp+amp": {name: models.scores["task1"][name] * value**2 for name, value in finetuned.items()},
    }[measure]
    job(models, measure=measure).write(models.pretrained, output)
    assert_written(output, forget(models.base, models.base, models.finetuned["task1"], scores, dtype=F32))


def test_the_buffers_are_those_of_the_model_that_forgets(
    models: Models, output: Path, tmp_path: Path
) -> None:
    save_weights(tmp_path / "model.safetensors", prefixed(state(77), "module.visual."))
    job(models, model=tmp_path / "model.safetensors").write(models.pretrained, output)
    assert load_weights(output)[f"{PREFIX}steps"].tolist() == [77, 7]


def test_what_the_file_says_of_itself(models: Models, output: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    save_weights(model, prefixed(state(77)))
    job(models, model=model, p=0.4).write(models.pretrained, output)
    about = read_metadata(output)
    settings, sources = json.loads(about["settings"]), json.loads(about["sources"])
    assert about["kind"] == "forgotten:sta"
    assert settings["target"] == "task1"
    assert settings["p"] == 0.4
    files = models.tasks["task1"]
    assert {role: entry["sha256"] for role, entry in sources.items()} == {
        "pretrained": sha256(models.file),
        "model": sha256(model),
        "finetuned/task1": sha256(str(files.finetuned)),
        "importance/task1": sha256(str(files.importance)),
    }


@pytest.mark.parametrize("what", ["model", "finetuned", "importance", "no importance"])
def test_what_is_refused(what: str, models: Models, output: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    save_weights(model, prefixed(state(77)))
    path = {"model": model}.get(what) or Path(str(getattr(models.tasks["task1"], what.split()[-1])))
    if what == "no importance":
        models.tasks["task1"].importance = None
    else:
        content = load_weights(path)
        content[next(name for name in content if name.endswith("scale"))] = torch.tensor(float("inf"))
        save_weights(path, content, {"measure": "lp"}, allow_nonfinite=True)
    output.parent.mkdir()
    output.write_bytes(b"old")
    with pytest.raises(StaError) as caught:
        job(models, model=model).write(models.pretrained, output)
    assert (
        (what in str(caught.value))
        if what == "no importance"
        else ("NaN or Inf in tensor 'scale'" in str(caught.value))
    )
    assert what == "no importance" or path.name in str(caught.value)
    assert output.read_bytes() == b"old"
    assert os.listdir(output.parent) == [output.name]
