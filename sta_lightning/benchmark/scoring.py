"""What is made of pretrained and fine-tuned encoders before a merge: heads, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from sta_lightning.benchmark.images import Suite
from sta_lightning.callbacks import score
from sta_lightning.encoders import build_encoder
from sta_lightning.modules import CLIPClassifier
from sta_lightning.modules.parts import QUIET, head_for
from sta_lightning.tasks import get_task

HEAD, SCORES = "head.safetensors", "scores.safetensors"


def make_head(suite: Suite, name: str, folder: Path) -> dict[str, Any]:
    """Write the frozen head of a task or of the control to ``head.safetensors``."""
    settings = suite.settings
    data = suite.datamodule(name)
    data.prepare_data()
    head = head_for(
        get_task(suite.members[name].spec),
        settings.encoder,
        settings.pretrained,
        build_encoder(settings.encoder, settings.pretrained, settings.image_size),
        datamodule=data,
    )
    head.save(folder / HEAD)
    return {"outcome": f"{head.num_classes} classes"}


def make_scores(
    suite: Suite,
    task: str,
    seed: int,
    what: str,
    samples: int,
    encoder: Path | None,
    head: Path,
    folder: Path,
) -> dict[str, Any]:
    """Write what ``sta score`` writes of an encoder to ``scores.safetensors``.

    ``encoder`` is None for the pretrained one, ``what`` an importance's measure or ``gram``;
    ``seed`` draws ``samples`` images: of training, or of validation for a control that has none.
    """
    settings = suite.settings
    module = CLIPClassifier(
        encoder=settings.encoder,
        task=suite.members[task].spec,
        pretrained=settings.pretrained,
        weights=None if encoder is None else str(encoder),
        head=str(head),
        image_size=settings.image_size,
    )
    trainer = Trainer(accelerator=settings.accelerator, devices=1, **QUIET)
    data: LightningDataModule = suite.datamodule(task, seed)
    if suite.scored(task) != "train":
        data = LightningDataModule.from_datasets(suite.images(task, suite.scored(task)))
    score(trainer, module, data, output=folder / SCORES, measure=what, samples=samples, seed=seed)
    return {"outcome": f"{what} on {samples} images"}
