"""``sta merge``: build the fused model that a config describes, write it, evaluate it on every task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from sta_lightning.cli.base import Link, StaCLI, same
from sta_lightning.cli.checks import check_output
from sta_lightning.cli.screen import accuracy_table, say
from sta_lightning.modules import MergeModule
from sta_lightning.modules.merged import MergedEvaluation
from sta_lightning.tasks import MultiTaskDataModule


def names_of(tasks: dict[str, Any] | None) -> list[str]:
    """The tasks to evaluate: those that the model is made of."""
    return list(tasks or {})


LINKS = (*same("encoder", "pretrained", "image_size"), Link("tasks", "tasks", names_of))


class MergeTrainer(Trainer):
    """A trainer that fuses."""

    def merge(
        self,
        model: MergeModule,
        datamodule: MultiTaskDataModule,
        output: Path,
        evaluate: bool = True,
    ) -> None:
        """Fuse fine-tuned encoders into one, write it, and evaluate it on every task.

        Args:
            model: Which encoders are fused, and how.
            datamodule: The tasks' images.
            output: File for the fused encoder (safetensors); it is replaced whole, and its metadata
                names the method, its settings and the SHA-256 of every source.
            evaluate: Whether to measure accuracy on every task's test split, on the screen and in
                every logger.
        """
        check_output(output)
        write_merged(self, model, output)
        if evaluate:
            evaluate_merged(self, model, datamodule)


def write_merged(trainer: Trainer, model: MergedEvaluation, output: Path) -> None:
    """Merge and save, on the first process only."""
    model.merge()
    if trainer.is_global_zero:
        model.save(output)
        say(f"written: {output}")


def evaluate_merged(trainer: Trainer, model: MergedEvaluation, datamodule: MultiTaskDataModule) -> None:
    """Evaluate through ``Trainer.test`` and print one small table."""
    trainer.test(model, datamodule=datamodule, verbose=False)
    if trainer.is_global_zero:
        say(accuracy_table({key: float(value) for key, value in trainer.callback_metrics.items()}))


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta merge``.

    Args:
        name: ``merge``.
        words: The command line after it.
    """
    StaCLI(
        name,
        words,
        model_class=MergeModule,
        datamodule_class=MultiTaskDataModule,
        trainer_class=MergeTrainer,
        links=LINKS,
        # Nothing is trained: there is no checkpoint to leave.
        trainer_defaults={"enable_checkpointing": False, "enable_model_summary": False},
    )
