"""``sta probabilities``: those of the classes on a test split, in one safetensors file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from sta_lightning.callbacks.trial import is_trial
from sta_lightning.cli.screen import say
from sta_lightning.cli.train import launch
from sta_lightning.engine.sources import check_output
from sta_lightning.errors import StaError
from sta_lightning.weights import provenance, save_weights


class PredictTrainer(Trainer):
    """A trainer that writes what it predicts."""

    def probabilities(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        output: Path,
        ckpt_path: str | None = None,
        weights_only: bool | None = True,
    ) -> None:
        """Write the class probabilities of every image of the test split.

        Args:
            model: The classifier.
            datamodule: The images, in the order of the test split.
            output: File for the probabilities (safetensors: one float32 tensor ``probabilities`` of
                shape images by classes); it is replaced whole.
            ckpt_path: Checkpoint of the classifier; ``None`` for the model as configured.
            weights_only: Whether to refuse a checkpoint that holds more than tensors and plain
                values.

        Raises:
            StaError: The run has several processes, each of which sees a part of the images.
        """
        check_output(output)
        if self.world_size > 1:
            raise StaError(
                f"sta probabilities runs in one process, found {self.world_size}. Give --trainer.devices=1 --trainer.num_nodes=1."
            )
        batches: Any = self.predict(
            model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=weights_only
        )
        if not batches:
            raise StaError(
                "the test split gave no images to predict. Raise data.test_limit or trainer.limit_predict_batches."
            )
        if is_trial(self, output):
            return
        sources = {} if ckpt_path is None else {"checkpoint": Path(ckpt_path)}
        metadata = provenance("probabilities", {"model": type(model).__name__}, sources)
        save_weights(output, {"probabilities": torch.cat(batches)}, metadata)
        say(f"written: {output}")


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta probabilities``."""
    launch(name, words, PredictTrainer)
