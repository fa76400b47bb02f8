"""Exported weights are what the merge reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

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


class Explodes(Callback):
    """Makes a weight infinite after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(cast(Any, pl_module).encoder.parameters()).fill_(torch.inf)


@pytest.mark.parametrize(
    ("step", "when"), [(1, "was NaN or infinite from step 2 on"), (3, "was finite in every step")]
)
def test_weights_that_are_not_finite_are_not_written(
    pretrained: Path, tmp_path: Path, step: int, when: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("encoder", "head"):
        (folder / f"{name}.safetensors").write_bytes(b"older")
    module = CLIPClassifier(task="spots", pretrained=str(pretrained))
    trainer = quiet_trainer(
        max_epochs=1, limit_val_batches=0, callbacks=[Explodes(step), ExportWeights(str(folder))]
    )
    with pytest.raises(StaError, match=rf"after 3 steps with NaN or Inf in .*'encoder\..*its loss {when}\."):
        trainer.fit(module, TaskDataModule("spots", batch_size=8))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "encoder.safetensors": b"older",
        "head.safetensors": b"older",
    }
    # The next fit of the same callback is another one.
    export = cast(Any, trainer).callbacks[-1]
    trainer = quiet_trainer(max_epochs=1, callbacks=[export])
    trainer.fit(
        CLIPClassifier(task="spots", pretrained=str(pretrained)), TaskDataModule("spots", batch_size=8)
    )
    assert (folder / "encoder.safetensors").read_bytes() != b"older"


def test_a_head_that_is_not_finite_is_not_written(pretrained: Path, tmp_path: Path) -> None:
    module = CLIPClassifier(task="spots", pretrained=str(pretrained), learning_rate=1e30, trainable="head")
    trainer = quiet_trainer(
        max_epochs=2, limit_val_batches=0, callbacks=[ExportWeights(str(tmp_path / "out"))]
    )
    with pytest.raises(StaError, match=r"NaN or Inf in .*'head\."):
        trainer.fit(module, TaskDataModule("spots", batch_size=8))
    assert not (tmp_path / "out").exists()


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
