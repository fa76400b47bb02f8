"""What each process of the multi-process scoring tests runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from sta_lightning.callbacks import GramCollection, ImportanceScoring, score
from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier
from sta_lightning.tasks import TaskDataModule
from tests.toys import register_toys

SAMPLES = 7


def trainer(processes: int, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **settings,
    )


def module(folder: Path) -> CLIPClassifier:
    return CLIPClassifier(
        task="spots", pretrained=str(folder / "pretrained.safetensors"), learning_rate=1e-3, warmup_steps=1
    )


class FaultyData(TaskDataModule):
    """Cannot read one of its images, which one process out of several meets."""

    def dataset(self, split: Any, augment: bool = False) -> Any:
        found = super().dataset(split, augment)
        if split == "train" and self.trainer is not None and self.trainer.global_rank == 1:
            raise OSError("image 3 is unreadable")
        return found

    def scoring_samples(self, n: int, seed: int = 0) -> list[int]:
        return list(range(n))


def main(processes: int, folder: Path) -> None:
    """Score alone, after a validation and a fit; then let a process, and the writing, fail."""
    out = folder / f"on{processes}"
    register_toys()
    data = TaskDataModule("spots", batch_size=4)
    score(trainer(processes), module(folder), data, output=out / "score.safetensors", samples=SAMPLES)
    for measure in ("fisher", "gram"):
        output = out / f"{measure}.safetensors"
        score(trainer(processes), module(folder), data, output=output, samples=SAMPLES, measure=measure)
    if processes > SAMPLES // 2:
        # More processes than samples: some have none.
        score(trainer(processes), module(folder), data, output=out / "few.safetensors", samples=2)
        output = out / "few-gram.safetensors"
        score(trainer(processes), module(folder), data, output=output, samples=2, measure="gram")
    if processes == 2:
        callback = ImportanceScoring(str(out / "validate.safetensors"), samples=SAMPLES)
        trainer(2, callbacks=[callback]).validate(module(folder), data, verbose=False)
        scoring = [
            ImportanceScoring(str(out / "fit.safetensors"), samples=SAMPLES),
            GramCollection(str(out / "fit-gram.safetensors"), samples=SAMPLES),
        ]
        for name, callbacks in (("without", []), ("with", scoring)):
            seed_everything(3)
            trained = module(folder)
            trainer(2, callbacks=callbacks, max_epochs=2, gradient_clip_val=1.0).fit(trained, data)
            torch.save(
                {"weights": trained.state_dict(), "random": torch.get_rng_state()},
                out / f"{name}-{trained.global_rank}.pt",
            )
        said: dict[str, str] = {}
        for name, source, output in (
            ("reading", FaultyData("spots"), out / "reading.safetensors"),
            ("writing", data, folder / "pretrained.safetensors" / "writing.safetensors"),
        ):
            try:
                score(trainer(2), module(folder), source, output=output, samples=SAMPLES)
            except (StaError, OSError) as error:
                said[name] = str(error)
        print("SAID " + json.dumps(said), flush=True)
