"""Exported weights are what the merge reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sta_lightning.callbacks import ExportWeights, tensor_digest
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier
from sta_lightning.tasks import TaskDataModule
from sta_lightning.weights import read_metadata
from tests.toys import quiet_trainer


def test_encoder_and_head_are_written_when_a_fit_ends(pretrained: Path, tmp_path: Path) -> None:
    module = CLIPClassifier(task="spots", pretrained=str(pretrained), learning_rate=1e-3, trainable="both")
    trainer = quiet_trainer(max_epochs=1, callbacks=[ExportWeights(str(tmp_path / "out"))])
    trainer.fit(module, TaskDataModule("spots", batch_size=8))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "encoder.safetensors",
        "head.safetensors",
    ]
    encoder = build_encoder("miniature", str(tmp_path / "out" / "encoder.safetensors"))
    assert all(torch.equal(t, encoder.state_dict()[n]) for n, t in module.encoder.state_dict().items())
    head = ClassificationHead.load(tmp_path / "out" / "head.safetensors")
    assert torch.equal(head.weight, module.head.weight)
    metadata = read_metadata(tmp_path / "out" / "encoder.safetensors")
    settings = json.loads(metadata["settings"])
    assert metadata["kind"] == "finetuned:fit"
    assert settings["steps"] == 3
    assert settings["learning_rate"] == 1e-3
    assert settings["pretrained"] == "pretrained.safetensors", "no folder of this machine"
    assert metadata["weights_sha256"] == tensor_digest(module.encoder.state_dict())


def test_what_cannot_be_written_is_one_message(pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    trainer = quiet_trainer(max_epochs=1, callbacks=[ExportWeights(str(tmp_path / "file" / "out"))])
    module = CLIPClassifier(task="spots", pretrained=str(pretrained))
    with pytest.raises(StaError, match="file"):
        trainer.fit(module, TaskDataModule("spots", batch_size=8))


def test_the_digest_is_of_names_types_shapes_and_values() -> None:
    state = {"a": torch.arange(4.0), "b": torch.tensor(True), "c": torch.tensor(2, dtype=torch.int64)}
    digest = tensor_digest(state)
    assert tensor_digest(dict(reversed(state.items()))) == digest
    others = [
        {**state, "a": state["a"].view(2, 2)},
        {**state, "a": state["a"].bfloat16()},
        {**state, "a": state["a"] + 1},
        {"x": state["a"], "b": state["b"], "c": state["c"]},
    ]
    assert len({digest, *map(tensor_digest, others)}) == 5
    assert tensor_digest({"a": torch.ones(3).bfloat16()}) != tensor_digest({"a": torch.ones(3).half()})
