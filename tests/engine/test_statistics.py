"""What a merge reads besides weights: Gram matrices, Fisher information, any importance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sta_lightning.arithmetic import (
    FORGET_METHODS,
    FUSION_METHODS,
    VectorMethod,
    fuse,
    make_method,
    unlearn,
)
from sta_lightning.arithmetic.entries import Block
from sta_lightning.engine import ForgettingJob, FusionJob
from sta_lightning.errors import StaError
from sta_lightning.weights import load_weights, read_metadata, save_weights, tensor_digest
from tests.engine.models import PREFIX, Models, write_models

LAYER = "transformer.resblocks.0.mlp.c_fc.weight"
WIDTH = 9


@dataclass(frozen=True)
class ByGram(VectorMethod):
    """The sum of delta_i G_i for the tensors that have Gram matrices, nothing for the others."""

    title: ClassVar[str] = "By Gram"
    scope = "tensor"
    needs_grams: ClassVar[bool] = True

    def vector(self, block: Block, state: Any) -> Tensor:
        if not block.grams:
            return torch.zeros_like(block.base)
        parts = [delta @ gram for delta, gram in zip(block.deltas(), block.grams, strict=True)]
        return torch.stack(parts).sum(0)


def gram(seed: int, width: int = WIDTH) -> Tensor:
    drawn = torch.randn(20, width, generator=torch.Generator().manual_seed(seed))
    return drawn.T @ drawn / 20


@pytest.fixture
def own(tmp_path: Path) -> Models:
    """Models whose tasks have Gram matrices of the one linear layer."""
    models = write_models(tmp_path / "models")
    for number, (task, files) in enumerate(models.tasks.items()):
        files.gram = str(models.folder / f"{task}-gram.safetensors")
        about = {"measure": "gram", "weights_sha256": tensor_digest(models.finetuned[task])}
        save_weights(files.gram, {LAYER: gram(number)}, about)
    return models


def by_gram(models: Models) -> FusionJob:
    return FusionJob(models.tasks, "by_gram", ByGram())


def refused(models: Models) -> str:
    with pytest.raises(StaError) as caught:
        by_gram(models).in_memory(models.pretrained)
    return str(caught.value)


def test_a_method_gets_the_gram_matrices(own: Models, tmp_path: Path) -> None:
    output = tmp_path / "fused.safetensors"
    by_gram(own).write(own.pretrained, output)
    found = load_weights(output)
    expected = own.base[LAYER].clone()
    for number, finetuned in enumerate(own.finetuned.values()):
        expected += (finetuned[LAYER] - own.base[LAYER]) @ gram(number)
    torch.testing.assert_close(found[PREFIX + LAYER], expected)
    torch.testing.assert_close(found[PREFIX + "conv1.weight"], own.base["conv1.weight"])
    sources = json.loads(read_metadata(output)["sources"])
    assert {f"gram/{task}" for task in own.tasks} < set(sources)
    assert sources["gram/task1"]["file"] == "task1-gram.safetensors"


def test_other_methods_do_not_read_them(own: Models) -> None:
    for files in own.tasks.values():
        files.gram = "/nowhere/gram.safetensors"
    job = FusionJob(own.tasks, "average", make_method("average", FUSION_METHODS))
    job.in_memory(own.pretrained)
    assert "gram/" not in job.metadata(own.pretrained)["sources"]


def test_a_task_without_gram_matrices(own: Models) -> None:
    own.tasks["task1"].gram = None
    message = refused(own)
    assert "task 'task1': method 'By Gram' reads the Gram matrices" in message
    assert "sta score --model.task=NAME --weights=FILE --measure=gram" in message


def test_an_importance_in_place_of_gram_matrices(own: Models) -> None:
    own.tasks["task1"].gram = own.tasks["task1"].importance
    assert "task1-importance.safetensors' holds the importance by measure 'lp'" in refused(own)


def test_gram_matrices_in_place_of_an_importance(own: Models) -> None:
    own.tasks["task1"].importance = own.tasks["task1"].gram
    with pytest.raises(StaError, match=r"task1-gram.*was scored with measure 'gram', but 'lp' is asked for"):
        FusionJob(own.tasks, "sta", make_method("sta", FUSION_METHODS)).in_memory(own.pretrained)


def test_gram_matrices_of_other_weights(own: Models) -> None:
    save_weights(
        str(own.tasks["task1"].gram), {LAYER: gram(1)}, {"measure": "gram", "weights_sha256": "0" * 64}
    )
    message = refused(own)
    assert "task1-gram.safetensors' was scored on other weights" in message
    assert "000000000000…" in message


@pytest.mark.parametrize(
    ("grams", "said"),
    [
        ({LAYER: gram(0, 8)}, f"'{LAYER} (8, 8)'"),
        ({"blocks.0.weight": gram(0)}, "'blocks.0.weight (9, 9)'"),
        ({"scale": torch.tensor(1.0)}, "'scale ()'"),
        ({LAYER: gram(0).long()}, f"'{LAYER} (9, 9)'"),
        ({}, "it is empty"),
    ],
)
def test_gram_matrices_of_another_encoder(own: Models, grams: dict[str, Tensor], said: str) -> None:
    save_weights(str(own.tasks["task1"].gram), grams, {"measure": "gram"})
    message = refused(own)
    assert "task 'task1'" in message
    assert f"does not hold the Gram matrices of this encoder: {said}" in message


def test_forgetting_reads_a_control_s_too(own: Models, tmp_path: Path) -> None:
    control, output = tmp_path / "control.safetensors", tmp_path / "forgotten.safetensors"
    save_weights(control, {LAYER: gram(9)}, {"measure": "gram", "weights_sha256": "0" * 64})
    files, method = own.tasks["task1"], make_method("spared", FORGET_METHODS, settings={"mu": 2.0})
    job = ForgettingJob("task1", files, "spared", method, control_gram=str(control))
    job.write(own.pretrained, output)
    expected = unlearn(
        *("spared", own.base, own.base, own.finetuned["task1"]),
        settings={"mu": 2.0},
        gram={LAYER: gram(1)},
        control_gram={LAYER: gram(9)},
    ).weights
    found = load_weights(output)
    assert all(torch.equal(found[PREFIX + name], tensor) for name, tensor in expected.items())
    about = json.loads(read_metadata(output)["sources"])
    assert about["control_gram"]["file"] == "control.safetensors"
    assert about["gram/task1"]["file"] == "task1-gram.safetensors"
    assert "importance/task1" not in about
    with pytest.raises(
        StaError, match=r"the control: method 'Spared control' reads.*name it as 'control_gram'"
    ):
        ForgettingJob("task1", files, "spared", method).in_memory(own.pretrained)
    save_weights(control, {LAYER: gram(9, 8)}, {"measure": "gram"})
    with pytest.raises(StaError, match=r"the control: .*does not hold the Gram matrices of this encoder"):
        job.in_memory(own.pretrained)


def test_a_file_that_is_not_there(own: Models) -> None:
    own.tasks["task1"].gram = str(own.folder / "absent.safetensors")
    message = refused(own)
    assert "task 'task1'" in message
    assert "absent.safetensors" in message


def sta(models: Models, measure: str) -> FusionJob:
    return FusionJob(models.tasks, "sta", make_method("sta", FUSION_METHODS), measure=measure)


def test_any_importance_as_it_is(own: Models, tmp_path: Path) -> None:
    """Of an unknown measure, signed, of other weights, and one that tells nothing of itself."""
    scores = {}
    for number, (task, files) in enumerate(own.tasks.items()):
        scores[task] = {name: tensor - 0.5 for name, tensor in own.scores[task].items()}
        about = {"measure": "somebody's", "weights_sha256": "0" * 64} if number else {}
        save_weights(str(files.importance), scores[task], about)
    with pytest.raises(StaError, match=r"was scored with measure 'lp', but 'fisher' is asked for"):
        sta(own, "fisher").in_memory(own.pretrained)
    output = tmp_path / "fused.safetensors"
    sta(own, "file").write(own.pretrained, output)
    found = load_weights(output)
    expected = fuse(own.base, own.finetuned, scores)
    for name, tensor in expected.items():
        assert torch.equal(found[PREFIX + name], tensor)
    assert json.loads(read_metadata(output)["settings"])["measure"] == "file"
    assert {f"importance/{task}" for task in own.tasks} < set(json.loads(read_metadata(output)["sources"]))


def test_forgetting_by_any_importance(own: Models) -> None:
    files = own.tasks["task0"]
    save_weights(str(files.importance), own.scores["task0"], {"measure": "somebody's"})
    method = make_method("sta", FORGET_METHODS)
    found = ForgettingJob("task0", files, "sta", method, measure="file").in_memory(own.pretrained)
    save_weights(str(files.importance), own.scores["task0"], {"measure": "lp"})
    expected = ForgettingJob("task0", files, "sta", method).in_memory(own.pretrained)
    assert all(torch.equal(tensor, expected.weights[name]) for name, tensor in found.weights.items())


def test_a_file_s_tensors_are_checked_whatever_it_is(own: Models) -> None:
    files = own.tasks["task1"]
    some = {name: tensor for name, tensor in own.scores["task1"].items() if name != "scale"}
    save_weights(str(files.importance), some)
    with pytest.raises(StaError, match=r"importance of task 'task1'.*missing 1 tensor: 'scale'"):
        sta(own, "file").in_memory(own.pretrained)
    save_weights(str(files.importance), {**some, "scale": torch.tensor(float("nan"))}, allow_nonfinite=True)
    with pytest.raises(StaError, match=r"importance of task 'task1'.*NaN or Inf.*'scale'"):
        sta(own, "file").in_memory(own.pretrained)
    files.importance = None
    with pytest.raises(
        StaError, match=r"'task1' by 'file' was asked for, but no importance file is given. Name a file"
    ):
        sta(own, "file").in_memory(own.pretrained)


def test_the_fisher_information_is_read_where_it_is_asked_for(own: Models) -> None:
    for task, files in own.tasks.items():
        save_weights(str(files.importance), own.scores[task], {"measure": "fisher"})
    assert all(
        torch.equal(tensor, sta(own, "file").in_memory(own.pretrained).weights[name])
        for name, tensor in sta(own, "fisher").in_memory(own.pretrained).weights.items()
    )
    with pytest.raises(StaError, match="scored with measure 'fisher', but 'lp' is asked for"):
        sta(own, "lp").in_memory(own.pretrained)
    save_weights(str(own.tasks["task0"].importance), own.scores["task0"], {"measure": "lp"})
    with pytest.raises(
        StaError, match=r"measure 'lp', but 'fisher' is asked for\. Score with measure 'fisher'\."
    ):
        sta(own, "fisher").in_memory(own.pretrained)
    own.tasks["task0"].importance = None
    with pytest.raises(
        StaError,
        match=r"`sta score --model.task=NAME --weights=FILE --measure=fisher --samples=256 --output=FILE` and name its file\.$",
    ):
        sta(own, "fisher").in_memory(own.pretrained)
    with pytest.raises(StaError, match=r"measure='gram' was asked for; choose one of .*'fisher', 'file'\."):
        sta(own, "gram")
