"""``sta merge`` and ``sta forget`` with an evaluation of the file that is written."""

import json
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.trainer.states import TrainerFn

from sta_lightning.callbacks.trial import trial
from sta_lightning.cli.base import Link, StaCLI, same
from sta_lightning.cli.checks import add_output
from sta_lightning.cli.screen import accuracy_table, say
from sta_lightning.modules import ForgetModule, MergeModule
from sta_lightning.modules.foretelling import foretold_table, ranking_table
from sta_lightning.modules.merged import MergedEvaluation
from sta_lightning.tasks import MultiTaskDataModule
from sta_lightning.weights import atomic_path


def names_of(tasks: dict[str, Any] | None) -> list[str]:
    """The tasks to evaluate: those that the model is made of."""
    return list(tasks or {})


def only(target: str | None) -> list[str]:
    """The tasks to evaluate besides the control: the one that is forgotten."""
    return [] if target is None else [target]


_MODELS = {"merge": MergeModule, "forget": ForgetModule}
_SHARED = same("encoder", "pretrained", "image_size")
LINKS = {
    "merge": (*_SHARED, Link("tasks", "tasks", names_of)),
    "forget": (*_SHARED, *same("control"), Link("target", "tasks", only)),
}


class MergeTrainer(Trainer):
    """A trainer that evaluates what is merged."""

    def merge(self, model: MergedEvaluation, datamodule: MultiTaskDataModule) -> None:
        """Write the encoder that is made, evaluate that file on every task and the control set.

        Args:
            model: What is merged, and how.
            datamodule: The tasks' images.
        """
        self.test(model, datamodule=datamodule, verbose=False)
        if self.is_global_zero:
            if model.card is not None:
                say(f"written: {model.output}")
                say(f"card: {model.card}")
            if isinstance(model, MergeModule):
                _tell(model)
            say(accuracy_table(model.accuracy))

    forget = merge


def _tell(model: MergeModule) -> None:
    """Say, and write, how near the merge is to the fine-tuned models, if that was looked at."""
    if "ranking" in model.about:
        say(f"{ranking_table(model.about['ranking'])}\n")
    if model.foretold is not None:
        say(f"{foretold_table(model.foretold['tasks'], model.foretold['layers'])}\n")
        if model.output is not None:
            beside = model.output.with_name(f"{model.output.stem}-foretold.json")
            place = model.output / "foretold.json" if model.output.is_dir() else beside
            with atomic_path(place) as temporary:
                temporary.write_text(json.dumps(model.foretold, indent=1), encoding="utf-8")
            say(f"foretold: {place}")
    elif "foretold" in model.about:
        say(f"{foretold_table(model.about['foretold'])}\n")


class MergeCLI(StaCLI):
    """Tells the model where its result goes."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that a merge without an evaluation has too."""
        super().add_arguments_to_parser(parser)
        add_output(parser)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer."""
        super().instantiate_classes()
        if trial(self.trainer, TrainerFn.TESTING) is None:
            self.model.output = self._setting("output")


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta merge`` or ``sta forget``."""
    MergeCLI(
        name,
        words,
        model_class=_MODELS[name],
        datamodule_class=MultiTaskDataModule,
        trainer_class=MergeTrainer,
        links=LINKS[name],
        # Nothing is trained: there is no checkpoint to leave.
        trainer_defaults={"enable_checkpointing": False, "enable_model_summary": False},
    )
