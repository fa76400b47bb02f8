"""The first half of the chain: heads, fine-tuned models and their importance, one step each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from sta_lightning.callbacks import score
from sta_lightning.encoders import build_encoder
from sta_lightning.experiment.finetuning import fine_tune
from sta_lightning.experiment.images import Counted
from sta_lightning.experiment.progress import bar, pulse
from sta_lightning.experiment.steps import StepRunner
from sta_lightning.experiment.suite import Suite
from sta_lightning.modules import CLIPClassifier, TaskSource
from sta_lightning.modules.parts import head_for
from sta_lightning.tasks import TaskDataModule, get_task
from sta_lightning.tasks.task import Split

HEAD, ENCODER, IMPORTANCE = "head.safetensors", "encoder.safetensors", "importance.safetensors"

HEAD_SOURCE = ("sta_lightning.modules.parts", "sta_lightning.tasks.datamodule")
SCORE_SOURCE = (
    "sta_lightning.callbacks.score",
    "sta_lightning.modules.classifier",
    "sta_lightning.tasks.datamodule",
)


class Models:
    """Makes, or finds made, what the fusion is made of.

    Args:
        suite: tasks and settings.
        runner: does the steps.
        runs: folder of the TensorBoard runs.
    """

    def __init__(self, suite: Suite, runner: StepRunner, runs: Path) -> None:
        self.suite, self.runner, self.runs = suite, runner, runs
        self.heads: dict[str, Path] = {}
        self.sources: dict[str, TaskSource] = {}
        self.train_images: dict[str, int] = {}
        self._encoder: nn.Module | None = None

    def prepare(self) -> None:
        """Do every step; afterwards ``heads`` and ``sources`` are filled."""
        for name in self.suite.members:
            self.heads[name] = self._head(name)
        for task in self.suite.tasks:
            encoder = self._finetuned(task)
            importance = self._importance(task, encoder)
            self.sources[task] = TaskSource(str(encoder), str(importance), str(self.heads[task]))

    def _head(self, name: str) -> Path:
        suite, settings = self.suite, self.suite.settings

        def work(folder: Path) -> dict[str, Any]:
            if self._encoder is None:
                self._encoder = build_encoder(settings.encoder, settings.pretrained, settings.image_size)
            data = suite.datamodule(name)
            data.prepare_data()
            task = get_task(suite.members[name].spec)
            with _Counting(data, f"head of {name}") as counted:
                head = head_for(
                    task,
                    encoder_name=settings.encoder,
                    pretrained=settings.pretrained,
                    encoder=self._encoder,
                    datamodule=counted,
                )
            head.save(folder / HEAD)
            return {"outcome": f"{head.num_classes} classes"}

        step = self.runner.run(
            f"head/{name}", suite.identity("train", name), work, suite.files(name), HEAD_SOURCE
        )
        return step.file(HEAD)

    def _finetuned(self, task: str) -> Path:
        suite, settings = self.suite, self.suite.settings
        own = suite.fine_tuning(task)
        key = {
            **suite.identity("train", task),
            "learning_rate": own.learning_rate,
            "epochs": own.epochs,
            "batch_size": own.batch_size,
            "weight_decay": settings.weight_decay,
            "warmup_steps": settings.warmup_steps,
            "validation_limit": settings.validation_limit,
            "seed": settings.seed,
        }
        step = self.runner.run(
            f"finetune/{task}",
            key,
            lambda folder: fine_tune(suite, task, self.heads[task], folder, self.runs),
            {**suite.files(task), "head": self.heads[task]},
            ("sta_lightning.experiment.finetuning",),
        )
        self.train_images[task] = int(step.result["train_images"])
        return step.file(ENCODER)

    def _importance(self, task: str, encoder: Path) -> Path:
        suite, settings = self.suite, self.suite.settings

        def work(folder: Path) -> dict[str, Any]:
            module = CLIPClassifier(
                encoder=settings.encoder,
                task=suite.members[task].spec,
                pretrained=settings.pretrained,
                weights=str(encoder),
                head=str(self.heads[task]),
                image_size=settings.image_size,
            )
            trainer = Trainer(
                accelerator=settings.accelerator,
                devices=1,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            with pulse(f"score {task}"):
                score(
                    trainer,
                    module,
                    suite.datamodule(task),
                    output=folder / IMPORTANCE,
                    measure="lp",
                    samples=settings.samples,
                    seed=settings.seed,
                )
            return {"outcome": f"LP on {settings.samples} images"}

        key = {
            **suite.identity("train", task),
            "measure": "lp",
            "samples": settings.samples,
            "seed": settings.seed,
        }
        files = {**suite.files(task), "head": self.heads[task], "encoder": encoder}
        return self.runner.run(f"score/{task}", key, work, files, SCORE_SOURCE).file(IMPORTANCE)


def clear_run(runs: Path, name: str, version: str) -> None:
    """Remove an earlier run's logs, so that a curve is of one run only."""
    shutil.rmtree(runs / name / version, ignore_errors=True)


class _Counting:
    """A datamodule whose training split moves a bar as it is read; the bar appears only if it is."""

    def __init__(self, data: TaskDataModule, description: str) -> None:
        self._data, self._description = data, description
        self._close: Callable[[], object] = lambda: None

    def __enter__(self) -> _Counting:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def dataset(self, split: Split) -> Counted:
        base = self._data.dataset(split)
        progress = bar(self._description, len(base), unit="image")
        self._close = progress.close
        return Counted(base, progress.update)
