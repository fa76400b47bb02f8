"""``sta forget``: build the model that has forgotten one task, write it, evaluate target and control."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from sta_lightning.cli.base import Link, StaCLI, same
from sta_lightning.cli.checks import check_output
from sta_lightning.cli.merge_evaluated import evaluate_merged, write_merged
from sta_lightning.modules import ForgetModule
from sta_lightning.tasks import MultiTaskDataModule


def only(target: str | None) -> list[str]:
    """The tasks to evaluate besides the control."""
    return [] if target is None else [target]


LINKS = (*same("encoder", "pretrained", "image_size", "control"), Link("target", "tasks", only))


class ForgetTrainer(Trainer):
    """A trainer that makes a model forget."""

    def forget(
        self,
        model: ForgetModule,
        datamodule: MultiTaskDataModule,
        output: Path,
        evaluate: bool = True,
    ) -> None:
        """Make a model forget one task, write it, and evaluate it on that task and on the control set.

        Args:
            model: Which model forgets which task, and how.
            datamodule: The images of the target and of the control.
            output: File for the encoder that has forgotten (safetensors); it is replaced whole, and
                its metadata names the method, its settings and the SHA-256 of every source.
            evaluate: Whether to measure accuracy on the test splits of target (lower is better) and
                control (it should stay), on the screen and in every logger.
        """
        check_output(output)
        write_merged(self, model, output)
        if evaluate:
            evaluate_merged(self, model, datamodule)


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta forget``.

    Args:
        name: ``forget``.
        words: The command line after it.
    """
    StaCLI(
        name,
        words,
        model_class=ForgetModule,
        datamodule_class=MultiTaskDataModule,
        trainer_class=ForgetTrainer,
        links=LINKS,
        # Nothing is trained: there is no checkpoint to leave.
        trainer_defaults={"enable_checkpointing": False, "enable_model_summary": False},
    )
