"""``sta fit``, ``validate`` and ``test``: LightningCLI as its users know it."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

# Imported so that their bare class names resolve in YAML and on the command line.
import sta_lightning.callbacks
import sta_lightning.modules
import sta_lightning.tasks.miniature.datamodule  # noqa: F401
from sta_lightning.callbacks import ExportWeights
from sta_lightning.callbacks.sampled import SampledPass
from sta_lightning.callbacks.trial import trial
from sta_lightning.cli.base import StaCLI, same
from sta_lightning.cli.guard import chain
from sta_lightning.cli.screen import say
from sta_lightning.errors import StaError
from sta_lightning.tasks import get_task
from sta_lightning.tasks.published import EPOCHS

LINKS = same("encoder", "pretrained", "image_size", "task")


class FitCLI(StaCLI):
    """Takes the length of a task's fine-tuning from the package's table unless it is given."""

    def complete(self, config: Namespace) -> None:
        """Fill in placeholders, and the epochs of a published task in an unbounded fit."""
        super().complete(config)
        if (task := _unbounded(config)) in EPOCHS:
            config["trainer"]["max_epochs"] = EPOCHS[task]

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and refuse a fit that would not end: Lightning's own default is 1000 epochs."""
        super().parse_arguments(parser, args)
        if task := _unbounded(self.config["fit"]):
            raise StaError(
                f"how long to train on the task '{get_task(task).name}' is not known: give --trainer.max_epochs. Only the "
                "published sets have a number of epochs of their own."
            )

    def _run_subcommand(self, subcommand: str) -> None:
        """Fit; after Ctrl+C tell what is kept, and how to go on."""
        try:
            super()._run_subcommand(subcommand)
        except (KeyboardInterrupt, SystemExit) as stop:  # Lightning makes the one of the other
            if self.trainer.is_global_zero and any(
                isinstance(link, KeyboardInterrupt) for link in chain(stop)
            ):
                self._tell_kept()
            raise

    def _tell_kept(self) -> None:
        kept = {
            Path(path)
            for callback in self.trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint) and not callback.save_weights_only
            for path in (callback.best_model_path, callback.last_model_path, *callback.best_k_models)
            if Path(path).is_file()
        }
        if kept:
            latest = max(kept, key=lambda path: path.stat().st_mtime)
            words = shlex.join(["sta", "fit", *self._words, f"--ckpt_path={latest}"])
            say(f"\nInterrupted. What is done is kept in {latest}; go on from there with\n{words}")
        else:
            say("\nInterrupted. No checkpoint has been written yet; the same command begins again.")

    def after_fit(self) -> None:
        """Name the files that the fit left; Lightning calls it. A trial has left none."""
        if trial(self.trainer) is not None:
            return
        found: list[str | Path] = []
        for callback in self.trainer.callbacks if self.trainer.is_global_zero else ():  # type: ignore[attr-defined]
            if isinstance(callback, ExportWeights):
                found += callback.files(self.trainer)
            elif isinstance(callback, SampledPass):
                found.append(callback.output)
            elif isinstance(callback, ModelCheckpoint):
                found += [callback.best_model_path, callback.last_model_path]
        for path in dict.fromkeys(map(str, found)):
            if Path(path).is_file():
                say(f"written: {path}")


def _unbounded(config: Namespace) -> str:
    """The task of a fit that no option of the trainer bounds; empty for another fit."""
    trainer, model = config["trainer"], config.get("model")
    bounded = trainer.max_epochs is not None or trainer.max_steps != -1 or trainer.max_time is not None
    return "" if bounded or trainer.fast_dev_run or not model else str(model.get("init_args.task") or "")


def launch(name: str, words: Sequence[str], trainer_class: type[Trainer]) -> None:
    """Run the trainer's method ``name``, with model and datamodule chosen by class name."""
    (FitCLI if name == "fit" else StaCLI)(
        name,
        words,
        model_class=LightningModule,
        datamodule_class=LightningDataModule,
        trainer_class=trainer_class,
        links=LINKS,
        choose_classes=True,
    )


def run(name: str, words: Sequence[str]) -> None:
    """Run one of Lightning's own subcommands."""
    launch(name, words, Trainer)
