"""What each process of the multi-process tests of a fit runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.optim import SGD

from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier, MultiModelEvaluation
from sta_lightning.modules.padding import real_samples
from sta_lightning.tasks import MultiTaskDataModule, TaskDataModule
from tests.toys import quiet_trainer, register_toys

SIZES = (23, 19)
"""Training images. In batches of 6 on 2 processes the last batch of 23 leaves one with fewer
images than the other, and that of 19 leaves one with none."""


class Seen(Callback):
    """Notes, batch by batch, a number for each image trained on, which its crop decides too."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        images, _ = batch
        count = real_samples(trainer.train_dataloader, batch_idx, len(images))
        self.batches.append(images[:count].double().sum(dim=(1, 2, 3)).tolist())


def main(processes: int, folder: Path) -> None:
    """Fit, test, and evaluate several models."""
    register_toys()
    several: dict[str, Any] = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    pretrained = str(folder / "pretrained.safetensors")
    said: dict[str, Any] = {}
    for size in SIZES:
        module = CLIPClassifier(
            task="spots",
            pretrained=pretrained,
            optimizer=lambda parameters: SGD(parameters, lr=0.05, momentum=0.9),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5),
        )
        data = TaskDataModule(
            "spots", batch_size=6, global_batch=True, train_limit=size, augment=True, seed=3
        )
        seen = Seen()
        trainer = quiet_trainer(max_epochs=2, gradient_clip_val=1.0, callbacks=[seen], **several)
        trainer.fit(module, data)
        torch.save(module.state_dict(), folder / f"fitted-{size}-{processes}-{trainer.global_rank}.pt")
        said[f"seen-{size}"] = seen.batches
        said[f"steps-{size}"] = trainer.global_step
        said[f"train-{size}"] = float(trainer.callback_metrics["train/acc"])
    # As the shipped configurations do it: AdamW, 10 steps.
    seed_everything(0, verbose=False)
    module = CLIPClassifier(task="spots", pretrained=pretrained, learning_rate=1e-3, warmup_steps=2)
    data = TaskDataModule("spots", batch_size=6, global_batch=True, augment=True, seed=3)
    trainer = quiet_trainer(max_steps=10, gradient_clip_val=1.0, **several)
    trainer.fit(module, data)
    torch.save(module.encoder.state_dict(), folder / f"adam-{processes}-{trainer.global_rank}.pt")
    fixed = CLIPClassifier(task="spots", pretrained=pretrained, weights=str(folder / "spots.safetensors"))
    trainer = quiet_trainer(**several)
    trainer.test(fixed, TaskDataModule("spots", batch_size=2), verbose=False)
    said["test"] = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    models = {name: str(folder / f"{name}.safetensors") for name in ("spots", "stripes")}
    many = MultiModelEvaluation(models, pretrained=pretrained)
    trainer.test(
        many, MultiTaskDataModule(["spots", "stripes"], control="watch", batch_size=2), verbose=False
    )
    said["many"] = many.accuracy
    if processes == 2:
        data = TaskDataModule("spots", batch_size=5, global_batch=True)
        try:
            quiet_trainer(max_epochs=1, **several).fit(fixed, data)
        except StaError as error:
            said["odd"] = str(error)
    print("SAID " + json.dumps(said), flush=True)
