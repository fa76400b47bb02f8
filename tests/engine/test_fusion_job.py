"""Fusing files: what the arithmetic makes of the loaded models, whatever the files are like."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sta_lightning import fuse
from sta_lightning.arithmetic import FUSION_METHODS, average, make_method, merge, task_arithmetic
from sta_lightning.arithmetic import run as run_module
from sta_lightning.arithmetic import states as states_module
from sta_lightning.engine import FusionJob, Pretrained, TaskSource
from sta_lightning.engine import job as job_module
from sta_lightning.engine.options import FusionOptions
from sta_lightning.errors import StaError, StaWarning
from sta_lightning.kernels import build
from sta_lightning.weights import TensorFile, load_weights, read_metadata, save_weights, sha256
from tests.engine.models import PREFIX, SHAPES, Models, State, prefixed, state, write_models
from tests.peers import as_processes

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "new" / "fused.safetensors"


def job(
    models: Models, method: str = "sta", *, measure: str = "lp", dtype: Any = None, **settings: Any
) -> FusionJob:
    made = make_method(method, FUSION_METHODS, **settings)
    return FusionJob(models.tasks, method, made, measure=measure, dtype=dtype)


def wanted(models: Models, method: str, scores: dict[str, State] | None = None) -> dict[str, Tensor]:
    """The same by the arithmetic's own functions, in memory."""
    match method:
        case "sta":
            return fuse(models.base, models.finetuned, scores or models.scores)
        case "random_mask":
            return merge("random_mask", models.base, models.finetuned).weights
        case "average":
            return average(models.base, models.finetuned)
    return task_arithmetic(models.base, models.finetuned)


def assert_written(path: Path, expected: dict[str, Tensor]) -> None:
    found = load_weights(path)
    assert found.keys() == prefixed(expected).keys()
    for name, value in prefixed(expected).items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("base", "finetuned", "scores"),
    [
        (F32, (F32,), (F32,)),
        (F16, (F16,), (F16,)),
        (BF16, (BF16,), (F32,)),
        (F32, (F16, BF16, F32), (F32, BF16, F16)),
        (F16, (F32, torch.float64), (torch.float64, F32)),
    ],
    ids=lambda value: "-".join(
        str(v).removeprefix("torch.") for v in (value if isinstance(value, tuple) else [value])
    ),
)
@pytest.mark.parametrize("method", ["sta", "random_mask", "average", "task_arithmetic"])
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_it_is_what_the_arithmetic_makes(
    compiled: bool,
    method: str,
    base: Any,
    finetuned: Any,
    scores: Any,
    tmp_path: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 100)
    models = write_models(tmp_path / "models", base_dtype=base, dtypes=finetuned, score_dtypes=scores)
    expected = wanted(models, method)
    made = job(models, method)
    if compiled:
        monkeypatch.setattr(build, "PAYS", 0)
    else:
        monkeypatch.setattr(run_module, "_native", lambda *_: (None, None))
    kept = made.write(models.pretrained, output)
    assert_written(output, expected)
    merged = made.in_memory(models.pretrained)
    assert list(merged.weights) == list(models.base)
    assert all(torch.equal(merged.weights[name], value) for name, value in expected.items())
    assert merged.kept == kept
    assert bool(kept) == (method in ("sta", "random_mask"))


@pytest.mark.parametrize("measure", ["lp", "amp", "lp+amp", "delta-amp"])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_measures(measure: str, dtype: torch.dtype, tmp_path: Path, output: Path) -> None:
    models = write_models(tmp_path / "models", dtypes=(dtype,))
    scores = {}
    for task, finetuned in models.finetuned.items():
        wide = {name: value.float() for name, value in finetuned.items() if name != "steps"}
        scores[task] = {
            "lp": models.scores[task],
            "amp": {name: value**2 for name, value in wide.items()},
            "lp+amp": {name: models.scores[task][name] * value**2 for name, value in wide.items()},
            "delta-amp": {name: (value - models.base[name]) ** 2 for name, value in wide.items()},
        }[measure]
    if "lp" not in measure:
        for files in models.tasks.values():
            files.importance = None
    job(models, measure=measure).write(models.pretrained, output)
    assert_written(output, wanted(models, "sta", scores))
    assert json.loads(read_metadata(output)["settings"])["measure"] == measure


def test_a_measure_that_scoring_wrote(tmp_path: Path, output: Path) -> None:
    models = write_models(tmp_path / "models")
    for task, files in models.tasks.items():
        save_weights(str(files.importance), models.scores[task], {"measure": "delta-lp"})
    job(models, measure="delta-lp").write(models.pretrained, output)
    assert_written(output, wanted(models, "sta"))
    with pytest.raises(
        StaError, match=r"task 'task0'.*scored with measure 'delta-lp', but 'lp' is asked for"
    ):
        job(models).write(models.pretrained, output)


@pytest.mark.parametrize("mode", ["tensor", "block", "model", "none"])
def test_bounds_in_the_importance_files_change_nothing(mode: str, tmp_path: Path, output: Path) -> None:
    found = []
    for known in (True, False):
        models = write_models(tmp_path / f"models{known}", known_bounds=known)
        kept = job(models, normalize=mode).write(models.pretrained, output)
        found.append((load_weights(output), kept))
    assert all(torch.equal(found[0][0][name], value) for name, value in found[1][0].items())
    assert found[0][1] == found[1][1]
    expected = fuse(models.base, models.finetuned, models.scores, normalize=mode, dtype=F32)
    assert_written(output, expected)


def test_a_result_in_memory_is_on_the_gpu_of_the_process(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "own_device", lambda device: torch.device("cpu"))
    made = job(models, "average")
    made.retype(None, torch.device("cuda"))
    found = made.in_memory(models.pretrained).weights
    for name, tensor in wanted(models, "average").items():
        assert torch.equal(found[name], tensor)


def test_the_order_of_the_tasks_changes_no_byte(models: Models, output: Path) -> None:
    job(models).write(models.pretrained, output)
    content = output.read_bytes()
    turned = Models(models.folder, models.base, tasks=dict(reversed(models.tasks.items())))
    job(turned).write(models.pretrained, output)
    assert output.read_bytes() == content


def test_reading_the_pretrained_encoder_from_its_file_changes_no_byte(models: Models, output: Path) -> None:
    job(models).write(models.pretrained, output)
    content = output.read_bytes()
    with TensorFile(models.file) as file:
        tensors = {name.removeprefix(PREFIX): file[name] for name in sorted(file)}
        job(models).write(Pretrained("miniature", tensors, PREFIX, models.file), output)
    assert output.read_bytes() == content


def test_what_the_file_says_of_itself(models: Models, output: Path) -> None:
    job(models, p=0.6, dtype=F16).write(models.pretrained, output)
    about = read_metadata(output)
    settings, sources = json.loads(about["settings"]), json.loads(about["sources"])
    assert about["kind"] == "fused:sta"
    assert settings == {
        "method": "sta", "encoder": "miniature", "image_size": None, "p": 0.6, "normalize": "tensor", "measure": "lp",
        "tasks": ["task0", "task1", "task2"],
    }  # fmt: skip
    expected = {"pretrained": str(models.file)}
    for task, files in models.tasks.items():
        expected |= {f"finetuned/{task}": str(files.finetuned), f"importance/{task}": str(files.importance)}
    assert sources == {
        role: {"file": Path(path).name, "sha256": sha256(path)} for role, path in expected.items()
    }
    assert str(models.folder) not in "".join(about.values())
    assert {tensor.dtype for name, tensor in load_weights(output).items() if "steps" not in name} == {F16}
    without = Pretrained("miniature", models.pretrained.tensors, PREFIX, None, "d" * 64, 64)
    job(models, "average").write(without, output)
    about = read_metadata(output)
    assert about["pretrained_sha256"] == "d" * 64
    assert set(json.loads(about["sources"])) == {f"finetuned/{task}" for task in models.tasks}
    assert json.loads(about["settings"])["image_size"] == 64


TEXT = {
    "token_embedding.weight": torch.ones(3, 2),
    "text_projection": torch.ones(2, 2),
    "logit_scale": torch.tensor(4.0),
}


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("", {}),
        ("visual.", {}),
        ("module.visual.", {"module.logit_scale": torch.tensor(1.0)}),
        ("visual.", {**TEXT, "transformer.resblocks.0.ln.weight": torch.ones(2)}),
        ("encoder.", {"head.weight": torch.ones(3, 3)}),
    ],
    ids=["alone", "visual", "module.visual", "whole CLIP", "with a head"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_fine_tuned_files_of_all_kinds(
    prefix: str, beside: State, suffix: str, tmp_path: Path, output: Path
) -> None:
    models = write_models(tmp_path / "models")
    for task, files in models.tasks.items():
        content = {**prefixed(models.finetuned[task], prefix), **beside}
        files.finetuned = str(tmp_path / f"{task}{suffix}")
        if suffix == ".safetensors":
            save_weights(files.finetuned, content)
        else:
            torch.save({"state_dict": content, "epoch": 3} if suffix == ".ckpt" else content, files.finetuned)
    job(models).write(models.pretrained, output)
    assert_written(output, wanted(models, "sta"))


def test_the_output_may_be_one_of_the_sources(tmp_path: Path) -> None:
    models = write_models(tmp_path / "models")
    expected = wanted(models, "sta")
    target = Path(str(models.tasks["task1"].finetuned))
    job(models).write(models.pretrained, target)
    assert {n.removeprefix(PREFIX): t for n, t in load_weights(target).items()}.keys() == expected.keys()
    assert all(
        torch.equal(value, expected[name.removeprefix(PREFIX)])
        for name, value in load_weights(target).items()
    )


def test_buffers_are_those_of_the_pretrained_encoder(models: Models, output: Path) -> None:
    job(models, "average").write(models.pretrained, output)
    assert load_weights(output)[f"{PREFIX}steps"].tolist() == state(0)["steps"].tolist() == [0, 7]
    assert set(SHAPES) | {"steps"} == {name.removeprefix(PREFIX) for name in load_weights(output)}


@pytest.mark.parametrize("statistics", ["pretrained", "average"])
def test_running_statistics_stay_or_are_averaged(tmp_path: Path, statistics: Any) -> None:
    running = {"bn.running_mean": (9,), "bn.running_var": (9,)}
    models = write_models(tmp_path / "models", shapes={**SHAPES, **running})
    options = FusionOptions(dict(models.tasks), encoder="miniature", statistics=statistics)
    output = tmp_path / "out.safetensors"
    options.write(models.pretrained, output)
    for name in running:
        tuned = np.mean([state[name].double().numpy() for state in models.finetuned.values()], axis=0)
        wanted = models.base[name].double().numpy() if statistics == "pretrained" else tuned
        np.testing.assert_allclose(load_weights(output)[PREFIX + name].numpy(), wanted, atol=1e-7)
    said = json.loads(read_metadata(output)["settings"])
    assert said.get("statistics", "pretrained") == statistics
    vectors = FusionOptions(dict(models.tasks), statistics=statistics, vectors=str(tmp_path / "vectors"))
    vectors.write(models.pretrained, output)
    parts = {
        task: TaskSource(vector=str(tmp_path / "vectors" / f"{task}.safetensors")) for task in models.tasks
    }
    added = FusionOptions(dict(parts), method="vectors")
    added.write(models.pretrained, tmp_path / "added.safetensors")
    assert torch.equal(
        load_weights(tmp_path / "added.safetensors")[PREFIX + "bn.running_var"], models.base["bn.running_var"]
    )


@pytest.mark.parametrize(
    ("same", "told"),
    [
        ("one tensor", r"nothing of any task in 1 of 5 tensors, 'conv1\.weight'\."),
        ("one task", "nothing of 'task1': the result is as if it were not there"),
        ("all", r"Nothing is changed: the result is the pretrained encoder\. The masks keep nothing\."),
    ],
)
def test_masks_that_keep_nothing_are_told(tmp_path: Path, same: str, told: str) -> None:
    models = write_models(tmp_path / "models", known_bounds=False)
    for task, scores in models.scores.items():
        for name, tensor in scores.items():
            if same == "all" or (same == "one task" and task == "task1") or name == "conv1.weight":
                scores[name] = torch.full_like(tensor, 0.0 if same == "one task" else 3.0)
        save_weights(str(models.tasks[task].importance), scores, {"measure": "lp"})
    if same == "one task":  # elsewhere the other two have their parts
        for task in ("task0", "task2"):
            scores = {**models.scores[task], "conv1.weight": torch.rand(9, 3, 4, 4)}
            save_weights(str(models.tasks[task].importance), scores, {"measure": "lp"})
    with pytest.warns(StaWarning, match=told):
        job(models).write(models.pretrained, tmp_path / "out.safetensors")


NOTHING = r"Nothing is changed: the result is the pretrained encoder\. A coefficient of 0"


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_a_result_that_is_its_base_is_told(
    models: Models, output: Path, dtype: torch.dtype, processes: int
) -> None:
    made = job(models, "task_arithmetic", scale=0.0, dtype=dtype)
    with pytest.warns(StaWarning, match=NOTHING) as told:
        outcomes = as_processes(processes, lambda group: made.write(models.pretrained, output, group))
    assert outcomes == [{}] * processes
    assert len(told) == 1, "by the first process alone"
    with pytest.warns(StaWarning, match=NOTHING):
        merged = made.in_memory(models.pretrained)
    assert all(
        torch.equal(merged.weights[name], t.to(merged.weights[name].dtype)) for name, t in models.base.items()
    )


@pytest.mark.parametrize("place", ["the first entry", "the last entry of the last tensor"])
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_one_entry_that_is_changed_is_enough(
    tmp_path: Path, place: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is told; what is not looked at any more is written all the same."""
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 100)
    monkeypatch.setattr(build, "PAYS", 0 if compiled else build.PAYS)
    models = write_models(tmp_path / "models")
    names = sorted(SHAPES)
    name, at = (names[0], 0) if place == "the first entry" else (names[-1], -1)
    for files in models.tasks.values():
        changed = {n: t.clone() for n, t in models.base.items()}
        changed[name].view(-1)[at] += 1.0
        save_weights(str(files.finetuned), prefixed(changed))
    merged = job(models, "task_arithmetic", scale=0.5).in_memory(models.pretrained)
    different = {n: int((t != models.base[n]).sum()) for n, t in merged.weights.items()}
    assert {n: count for n, count in different.items() if count} == {name: 1}


def test_a_task_that_is_the_pretrained_model_is_told(tmp_path: Path) -> None:
    models = write_models(tmp_path / "models")
    same = models.tasks["task1"]
    same.finetuned = str(models.file)
    told = r"task 'task1' \(.*\) is the pretrained model, entry for entry"
    with pytest.warns(StaWarning, match=told) as warned:
        job(models, "average").write(models.pretrained, tmp_path / "out.safetensors")
    assert len(warned) == 1
    models.tasks = dict.fromkeys(models.tasks, same)
    with pytest.warns(StaWarning, match=f"entry for entry|{NOTHING}") as warned:
        job(models, "average").write(models.pretrained, tmp_path / "out.safetensors")
    said = [str(warning.message) for warning in warned]
    assert [text.split(" (")[0] for text in said[:3]] == ["task 'task0'", "task 'task1'", "task 'task2'"]
    assert [text.split(":")[0] for text in said[3:]] == ["Nothing is changed"]
