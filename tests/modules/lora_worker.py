"""What each process of the multi-process test of a fit of adapters runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from torch.optim import SGD

from sta_lightning.callbacks import ExportWeights
from sta_lightning.encoders.adapters import Lora
from sta_lightning.modules import CLIPClassifier
from sta_lightning.tasks import TaskDataModule
from tests.toys import quiet_trainer, register_toys


def main(processes: int, folder: Path) -> None:
    """Fit adapters, and export them."""
    register_toys()
    seed_everything(0, verbose=False)
    several: dict[str, Any] = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    module = CLIPClassifier(
        task="spots",
        pretrained=str(folder / "pretrained.safetensors"),
        optimizer=lambda parameters: SGD(parameters, lr=0.5),
        lr_scheduler=None,
        lora=Lora(2),
    )
    data = TaskDataModule("spots", batch_size=6, global_batch=True, train_limit=18, seed=3)
    exports = ExportWeights(str(folder / f"fit-{processes}"))
    quiet_trainer(max_epochs=2, limit_val_batches=0, callbacks=[exports], **several).fit(module, data)
