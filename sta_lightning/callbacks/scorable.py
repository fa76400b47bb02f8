"""What can be scored: the trainer's strategy, the datamodule, the module and its weights."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.data import Dataset

from sta_lightning.arithmetic.workers import Alone, Processes
from sta_lightning.encoders import build_encoder
from sta_lightning.engine.processes import Group
from sta_lightning.errors import StaError


class Scorable(Protocol):
    """What a module must have to be scored: logits are ``head(encoder(images))``."""

    encoder: nn.Module
    head: nn.Module
    device: torch.device


class SampleSource(Protocol):
    """What samples are drawn from; ``TaskDataModule`` is one."""

    def scoring_samples(self, n: int, seed: int) -> list[int]:
        """Draw indices into the training split by the seed alone."""

    def dataset(self, split: str) -> Dataset[tuple[Tensor, int]]:
        """Return a split under the evaluation transform."""


def processes_of(trainer: Trainer) -> Processes:
    """The processes of a trainer, for :func:`~sta_lightning.arithmetic.workers.together`."""
    return Alone() if trainer.world_size == 1 else Group()


def check_strategy(trainer: Trainer) -> None:
    """Refuse a trainer whose processes do not each hold the whole model.

    Raises:
        StaError: The strategy shards the weights.
    """
    strategy = trainer.strategy
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not whole or isinstance(strategy, DeepSpeedStrategy):
        raise StaError(
            f"Scoring needs the whole model in every process, but the strategy is "
            f"{type(strategy).__name__}, which shards it. Score under strategy=auto or ddp; a checkpoint "
            "of a sharded fit can be scored afterwards with `sta score` on one device."
        )


def sample_source(datamodule: object) -> SampleSource:
    """Return the datamodule as what samples are drawn from.

    Raises:
        StaError: It is none, or has no ``scoring_samples`` and ``dataset``.
    """
    if not all(callable(getattr(datamodule, name, None)) for name in ("scoring_samples", "dataset")):
        found = "no datamodule" if datamodule is None else type(datamodule).__name__
        raise StaError(
            f"Scoring draws its samples from a TaskDataModule, but the trainer has {found}. "
            "Give the trainer datamodule=TaskDataModule(...) instead of loaders."
        )
    return cast(SampleSource, datamodule)


def scorable(module: LightningModule) -> Scorable:
    """Return the module as what has an encoder and a head.

    Raises:
        StaError: It lacks one of them.
    """
    for part in ("encoder", "head"):
        if not isinstance(getattr(module, part, None), nn.Module):
            raise StaError(
                f"{type(module).__name__} has no {part!r} to score: its logits must be head(encoder(images)), "
                "as those of CLIPClassifier are."
            )
    return cast(Scorable, module)


def floating(module: nn.Module) -> dict[str, Tensor]:
    """The floating-point tensors of a module, detached."""
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def pretrained_weights(module: LightningModule) -> dict[str, Tensor]:
    """The weights that the module's fine-tuning started from, on its device.

    Raises:
        StaError: The module does not tell its encoder.
    """
    hparams = dict(getattr(module, "hparams", {}))
    if "encoder" not in hparams:
        raise StaError(
            f"The measure needs the pretrained weights, but {type(module).__name__} does not tell its encoder. Score a "
            "CLIPClassifier, or use a measure without 'delta'."
        )
    encoder = build_encoder(hparams["encoder"], hparams.get("pretrained"), hparams.get("image_size"))
    return floating(encoder.to(module.device))
