"""Fusing files that do not fit: a message that names task and file, and nothing is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sta_lightning.arithmetic import FUSION_METHODS, make_method
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.engine import FusionJob
from sta_lightning.errors import StaError
from sta_lightning.weights import load_weights, save_weights
from tests.engine.models import PREFIX, Models, prefixed, write_models


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "new" / "fused.safetensors"


@pytest.fixture
def own(tmp_path: Path) -> Models:
    return write_models(tmp_path / "models")


def job(models: Models, *, measure: str = "lp", dtype: Any = None) -> FusionJob:
    return FusionJob(models.tasks, "sta", make_method("sta", FUSION_METHODS), measure=measure, dtype=dtype)


def refused(models: Models, output: Path, made: FusionJob | None = None) -> str:
    """The message of a merge that is refused, which writes nothing and changes nothing."""
    output.parent.mkdir(exist_ok=True)
    output.write_bytes(b"old")
    made = made or job(models)
    with pytest.raises(StaError) as caught:
        made.write(models.pretrained, output)
    assert output.read_bytes() == b"old"
    assert os.listdir(output.parent) == [output.name]
    with pytest.raises(StaError) as again:
        made.in_memory(models.pretrained)
    assert str(again.value) == str(caught.value)
    return str(caught.value)


def test_an_importance_of_other_weights(own: Models, output: Path) -> None:
    save_weights(
        str(own.tasks["task1"].importance), own.scores["task1"], {"measure": "lp", "weights_sha256": "0" * 64}
    )
    message = refused(own, output)
    assert "task 'task1'" in message
    assert "task1-importance.safetensors' was scored on other weights" in message
    assert "000000000000…" in message


def test_an_importance_that_is_not_given(own: Models, output: Path) -> None:
    own.tasks["task2"].importance = None
    assert "importance of task 'task2' by 'lp' was asked for, but no importance file is given" in refused(
        own, output
    )


def test_files_that_are_not_there(own: Models, output: Path) -> None:
    own.tasks["task2"].importance = str(own.folder / "absent.safetensors")
    message = refused(own, output)
    assert "task 'task2'" in message
    assert "absent.safetensors" in message
    own.tasks["task0"].finetuned = str(own.folder / "gone.pt")
    message = refused(own, output)
    assert "task 'task0'" in message
    assert "gone.pt" in message


@pytest.mark.parametrize("which", ["finetuned", "importance"])
@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "nan", "truncated", "foreign"])
def test_files_that_do_not_fit(which: str, damage: str, own: Models, output: Path) -> None:
    path = Path(str(getattr(own.tasks["task1"], which)))
    content = load_weights(path)
    name = next(name for name in content if name.endswith("conv1.weight"))
    match damage:
        case "missing":
            del content[name]
        case "unknown":
            content[name + "2"] = torch.ones(3)
        case "shape":
            content[name] = torch.ones(3, 3)
        case "nan":
            content[name].view(-1)[-1] = float("nan")
    save_weights(path, content, {"measure": "lp"}, allow_nonfinite=True)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    if damage == "foreign":
        path.write_bytes(b"\xff\xd8\xff\xe0 a picture")
    message = refused(own, output)
    assert "task 'task1'" in message
    assert path.name in message
    assert damage in ("truncated", "foreign") or "conv1.weight" in message


def test_integers_where_numbers_are_wanted(own: Models, output: Path) -> None:
    content = prefixed(own.finetuned["task0"])
    content[f"{PREFIX}scale"] = torch.tensor(3)
    save_weights(str(own.tasks["task0"].finetuned), content)
    assert "stands against an integer one in 'scale" in refused(own, output)


def test_a_result_that_float16_cannot_hold(own: Models, output: Path) -> None:
    own.base["class_embedding"][3] = 1e6
    for task in own.tasks:
        content = {**own.finetuned[task], "class_embedding": own.base["class_embedding"]}
        save_weights(str(own.tasks[task].finetuned), prefixed(content))
    message = refused(own, output, job(own, dtype=torch.float16))
    assert "overflows torch.float16 in tensor 'class_embedding'" in message


def test_bounds_that_are_no_bounds(own: Models, output: Path) -> None:
    save_weights(
        str(own.tasks["task0"].importance),
        own.scores["task0"],
        {"measure": "lp", "extents": '{"scale": [0, NaN]}'},
    )
    assert "'extents' is not a table" in refused(own, output)


def test_one_task_and_an_unknown_measure(own: Models, output: Path) -> None:
    only = Models(own.folder, own.base, tasks={"task0": own.tasks["task0"]})
    assert "at least two tasks" in refused(own, output, job(only))
    with pytest.raises(StaError, match="measure='lq' was asked for; choose one of 'lp'"):
        job(own, measure="lq")


def test_a_file_that_is_written_again_meanwhile(
    own: Models, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, check, times = Path(str(own.tasks["task1"].finetuned)), Problem.check_names, iter(range(1, 9))

    def and_touch(self: Problem) -> None:
        os.utime(path, ns=(1, next(times)))
        check(self)

    monkeypatch.setattr(Problem, "check_names", and_touch)
    assert "task1.safetensors' was changed while it was read" in refused(own, output)
