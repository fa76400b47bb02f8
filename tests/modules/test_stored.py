"""What a checkpoint may set: the arguments that a class lists, no code and no file to write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sta_lightning.modules
from sta_lightning.errors import StaError
from sta_lightning.modules import AdaMerging, CLIPClassifier, ContrastivePretraining, DistilledMerging
from sta_lightning.modules.stored import StoredSettings, stored_settings
from sta_lightning.tasks import TaskDataModule
from tests.toys import quiet_trainer

# What says which code runs, or which file is read as more than weights, or written.
CODE = {
    *("_class_path", "_instantiator", "optimizer", "lr_scheduler", "compile", "method", "settings"),
    *("tasks", "files", "models", "heads", "head", "weights", "output", "record"),
}


@pytest.fixture
def checkpoint(pretrained: Path, tmp_path: Path) -> dict[str, Any]:
    """The content of a checkpoint that a classifier has left."""
    module = CLIPClassifier(task="spots", pretrained=str(pretrained), learning_rate=0.125)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(module, TaskDataModule("spots", batch_size=4))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    content: dict[str, Any] = torch.load(tmp_path / "own.ckpt", weights_only=True)
    return content


def test_no_class_lists_code_or_files_to_write() -> None:
    found = [getattr(sta_lightning.modules, name) for name in sta_lightning.modules.__all__]
    lists = {module: set(getattr(module, "from_checkpoint", ())) for module in found}
    assert {module for module, names in lists.items() if names} == {
        *(AdaMerging, CLIPClassifier, ContrastivePretraining, DistilledMerging)
    }
    for module, names in lists.items():
        assert not CODE & names, module
        # The others are no modules, or refuse to be made of a checkpoint.
        assert not names or issubclass(module, StoredSettings)


@pytest.mark.parametrize(
    "planted",
    [
        {"_class_path": "payload.X", "_instantiator": "lightning.pytorch.cli.instantiate_module"},
        {
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
            "optimizer": {"class_path": "payload.X"},
        },
        {"optimizer": "payload.X", "_instantiator": "payload.X"},
        {"compile": {"backend": "payload.X"}},
    ],
)
def test_a_module_is_made_of_numbers_alone(
    planted: dict[str, Any], checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint["hyper_parameters"] |= planted
    torch.save(checkpoint, tmp_path / "planted.ckpt")
    (tmp_path / "payload.py").write_text("open('RAN', 'w')\nclass X: pass\n")
    script = (
        "from sta_lightning.modules import CLIPClassifier\n"
        "module = CLIPClassifier.load_from_checkpoint('planted.ckpt')\n"
        "print(module.hparams.learning_rate, module.hparams.task, module._optimizer, module._compile)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "0.125 spots None False", done.stderr
    assert not (tmp_path / "RAN").exists()


def test_what_the_caller_says_precedes(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "own.ckpt")
    module = CLIPClassifier.load_from_checkpoint(tmp_path / "own.ckpt", learning_rate=0.5)
    assert module.hparams["learning_rate"] == 0.5
    assert module.hparams["task"] == "spots"


def test_what_is_neither_number_nor_text_is_refused() -> None:
    planted = {"hyper_parameters": {"encoder": {"class_path": "payload.X"}, "other": []}}
    with pytest.raises(StaError, match=r"'x\.ckpt' .*\{'encoder': 'dict'\}"):
        stored_settings(planted, ["encoder"], "x.ckpt")
    assert stored_settings(planted, ["rate"], "x.ckpt") == {}


def test_a_file_that_is_no_checkpoint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StaError, match="there is no checkpoint"):
        CLIPClassifier.load_from_checkpoint(tmp_path / "none.ckpt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "plain.ckpt")
    with pytest.raises(StaError, match="holds no 'state_dict'"):
        CLIPClassifier.load_from_checkpoint(tmp_path / "plain.ckpt")
