"""The classifier by Lightning's command line: optimisers from YAML, checkpoints load again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from torch.optim import SGD

from sta_lightning.modules import CLIPClassifier
from sta_lightning.tasks import TaskDataModule


# Lightning's own command line calls jsonargparse by names that it has deprecated.
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter", "ignore::DeprecationWarning")
def test_optimiser_and_scheduler_come_from_yaml(pretrained: Path, tmp_path: Path) -> None:
    config: dict[str, object] = {
        "seed_everything": 1,
        "model": {
            "task": "spots",
            "pretrained": str(pretrained),
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25, "momentum": 0.9}},
            "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}},
        },
        "data": {"task": "spots", "batch_size": 8},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    cli = LightningCLI(
        CLIPClassifier,
        TaskDataModule,
        save_config_callback=None,
        auto_configure_optimizers=False,
        args=["fit", "--config", str(tmp_path / "config.yaml")],
    )
    optimizer = cli.trainer.optimizers[0]
    assert type(optimizer) is SGD
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25e-3)
    cli.trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = CLIPClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in cli.model.state_dict().items())
