"""Leaves the configuration of a run beside its results."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from sta_lightning.weights.atomic import atomic_path


class SaveConfig(SaveConfigCallback):
    """Writes the configuration into the run's log folder, whole or not at all; the latest run of a folder wins.

    The file is named after the subcommand, so that testing a model leaves the configuration of its
    fit alone.

    It runs on rank 0 only, so it holds no collective operation.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once by Lightning at the first ``setup``."""
        folder = next(
            (logger.log_dir for logger in trainer.loggers if getattr(logger, "log_dir", None)), None
        )
        if folder is None:
            return
        target = Path(folder) / self.config_filename
        target.parent.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_none=False, format="yaml")
        with atomic_path(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
