"""``sta fit``, ``validate`` and ``test``: LightningCLI as its users know it."""

from collections.abc import Sequence

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

# Imported so that their bare class names resolve in YAML and on the command line.
import sta_lightning.callbacks
import sta_lightning.modules
import sta_lightning.tasks.miniature.datamodule  # noqa: F401
from sta_lightning.cli.base import StaCLI, same

LINKS = same("encoder", "pretrained", "image_size", "task")


def launch(name: str, words: Sequence[str], trainer_class: type[Trainer]) -> None:
    """Run a method of a trainer with a model and a datamodule that are chosen by class name.

    Args:
        name: The subcommand, which is the method's name.
        words: The command line after it.
        trainer_class: Has the method.
    """
    StaCLI(
        name,
        words,
        model_class=LightningModule,
        datamodule_class=LightningDataModule,
        trainer_class=trainer_class,
        links=LINKS,
        choose_classes=True,
    )


def run(name: str, words: Sequence[str]) -> None:
    """Run one of Lightning's own subcommands.

    Args:
        name: ``fit``, ``validate`` or ``test``.
        words: The command line after it.
    """
    launch(name, words, Trainer)
