"""What is scored, and on which samples: strategy, module, data and weights."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from sta_lightning.arithmetic.workers import Alone, Processes, together
from sta_lightning.encoders import build_encoder
from sta_lightning.engine.processes import Group
from sta_lightning.errors import StaError
from sta_lightning.tasks.split import drawn_indices

Made = TypeVar("Made")
SampleLoss = Callable[[LightningModule, Any], Tensor]
"""The loss of one sample, of the module and a batch that holds it alone; what has several entries,
such as the tokens of a sequence, is summed."""


@dataclass(frozen=True)
class Scorable:
    """What of a module is scored, and how a sample's loss comes about.

    Attributes:
        module: the whole.
        encoder: the part whose weights are scored.
        head: makes logits of what the encoder returns; ``None`` where there is a loss.
        loss: makes the loss of a batch that holds one sample; ``None`` for the cross-entropy of
            ``head(encoder(images))``.
        path: where the encoder is in the module.
    """

    module: LightningModule
    encoder: nn.Module
    head: nn.Module | None
    loss: Callable[[Any], Tensor] | None = None
    path: str = "encoder"

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return self.module.device


class SampleSource(Protocol):
    """What samples are drawn from; ``TaskDataModule`` is one."""

    def scoring_samples(self, n: int, seed: int) -> list[int]:
        """Draw indices into the training split by the seed alone."""

    def dataset(self, split: str) -> Dataset[Any]:
        """Return a split under the evaluation transform."""


@dataclass
class LoaderSource:
    """The samples behind a training loader, for data of others.

    Attributes:
        loader: The training loader, of whose order and batch size nothing matters.
        transform: The validation's, to take in place of the training's; ``None`` where it is not
            known.
    """

    loader: DataLoader[Any]
    validation: Any = None
    _data: Any = field(init=False)

    def __post_init__(self) -> None:
        own, other = _origin(self.loader.dataset), _origin(getattr(self.validation, "dataset", None))
        known = type(own) is type(other) and hasattr(own, "transform")
        self._data = _evaluated(self.loader.dataset, other) if known else self.loader.dataset
        self.said = "the validation's transform" if known else "the training's own transform"

    def scoring_samples(self, n: int, seed: int) -> list[int]:
        """Draw indices as a ``TaskDataModule`` does."""
        return drawn_indices(len(self._data), n, seed, "the data set of the training loader")

    def dataset(self, split: str) -> Dataset[Any]:
        """Return the training samples."""
        return cast(Dataset[Any], self._data)

    def collate_fn(self, samples: list[Any]) -> Any:
        """Make a batch as the loader does."""
        return self.loader.collate_fn(samples)


def _origin(data: Any) -> Any:
    while isinstance(data, Subset):
        data = data.dataset
    return data


def _evaluated(data: Any, like: Any) -> Any:
    """A view of the same samples under another data set's transforms."""
    if isinstance(data, Subset):
        return Subset(_evaluated(data.dataset, like), data.indices)
    data = copy.copy(data)
    for name in ("transform", "transforms"):  # torchvision reads the one or the other
        if hasattr(like, name):
            setattr(data, name, getattr(like, name))
    return data


class Samples:
    """Drawn samples as batches, on the device of a module."""

    def __init__(self, source: SampleSource, indices: list[int], module: LightningModule, seed: int) -> None:
        self._source, self._indices, self._module, self._seed = source, indices, module, seed
        self._collate = getattr(source, "collate_fn", default_collate)
        self.labels: set[int] = set()
        """The labels that were met by :meth:`pairs`."""

    def __len__(self) -> int:
        return len(self._indices)

    def _sample(self, index: int) -> Any:
        # A transform may draw: what it does depends on seed and sample alone.
        for begin in (torch.manual_seed, random.seed, np.random.seed):
            begin((self._seed + index) % 2**32)
        return self._source.dataset("train")[index]

    def _batch(self, indices: list[int]) -> Any:
        batch = self._collate([self._sample(index) for index in indices])
        return self._module.transfer_batch_to_device(batch, self._module.device, 0)

    def each(self) -> Iterator[Any]:
        """Batches of one sample each."""
        for index in self._indices:
            yield self._batch([index])

    def pairs(self) -> tuple[Tensor, Tensor]:
        """All images ``[S, ...]`` and labels ``[S]``.

        Raises:
            StaError: The batches are of another kind.
        """
        batch = self._batch(self._indices)
        parts = list(batch) if isinstance(batch, (tuple, list)) else []
        if len(parts) < 2 or not all(isinstance(part, Tensor) for part in parts[:2]):
            raise StaError(
                f"Scoring without a loss wants batches of images and labels, and this is a {type(batch).__name__}. Give "
                "ImportanceScoring a loss: a function of module and batch, or the name of the module's method."
            )
        self.labels.update(parts[1].flatten().tolist())
        return parts[0], parts[1]


def processes_of(trainer: Trainer) -> Processes:
    """The processes of a trainer, for :func:`~sta_lightning.arithmetic.workers.together`."""
    return Alone() if trainer.world_size == 1 else Group()


def made_once(trainer: Trainer | None, make: Callable[[], Made]) -> Made:
    """What ``make`` returns on the first of a trainer's processes, on each of them.

    All of them call this. What is made has its tensors on the CPU: another process would put those
    of a GPU on that GPU.

    Raises:
        StaError: ``make`` has failed; every process raises it.
    """
    if trainer is None or trainer.world_size == 1:
        return make()
    processes, made = processes_of(trainer), list[Made]()
    together(processes, lambda: None if processes.rank else made.append(make()))
    return cast(Made, trainer.strategy.broadcast(made[0] if made else None))


def check_strategy(trainer: Trainer) -> None:
    """Refuse a trainer whose processes do not each hold the whole model.

    Raises:
        StaError: The strategy shards the weights.
    """
    strategy = trainer.strategy
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not whole or isinstance(strategy, DeepSpeedStrategy):
        raise StaError(
            "The whole model is needed in every process, to be scored, exported and merged, but the strategy is "
            f"{type(strategy).__name__}, which shards it. Use strategy=auto or ddp."
        )


def draws(datamodule: object) -> bool:
    """Tell whether a datamodule is a :class:`SampleSource` itself."""
    return all(callable(getattr(datamodule, name, None)) for name in ("scoring_samples", "dataset"))


def sample_source(datamodule: LightningDataModule | None, loader: Any = None) -> SampleSource:
    """Return what samples are drawn from.

    That is the datamodule, if it has ``scoring_samples`` and ``dataset`` as a ``TaskDataModule``
    has; else the data set behind the training loader, under the transform of the validation's data
    set where the two differ in that alone.

    Args:
        datamodule: Of the trainer, set up.
        loader: The trainer's training loader, where it has one.

    Raises:
        StaError: There is none, or its samples cannot be drawn by number.
    """
    if draws(datamodule):
        return cast(SampleSource, datamodule)
    validation = None
    if isinstance(datamodule, LightningDataModule):
        if is_overridden("val_dataloader", datamodule):
            validation = datamodule.val_dataloader()
        if loader is None and is_overridden("train_dataloader", datamodule):
            loader = datamodule.train_dataloader()
    data = getattr(loader, "dataset", None)
    if (
        not isinstance(loader, DataLoader)
        or isinstance(data, IterableDataset)
        or not hasattr(data, "__len__")
    ):
        found = (
            "no training loader" if loader is None else f"a {type(loader).__name__} of {type(data).__name__}"
        )
        raise StaError(
            f"Scoring draws samples by number, but the trainer has {found}. Give the trainer a TaskDataModule, or one training "
            "DataLoader of a data set with a length."
        )
    return LoaderSource(loader, validation)


def tell(source: SampleSource) -> None:
    """Say where samples come from, where a datamodule does not decide it."""
    if isinstance(source, LoaderSource):
        rank_zero_info(
            f"Scoring draws from the {len(source.dataset('train'))} samples of the training loader, under {source.said}."  # type: ignore[arg-type]
        )


def scorable(
    module: LightningModule,
    encoder: str = "encoder",
    head: str = "head",
    loss: str | SampleLoss | None = None,
) -> Scorable:
    """Find what of a module is scored.

    Args:
        module: Any.
        encoder: Where in it the part is whose weights are scored, dotted; empty for the whole.
        head: Where the part is that makes logits of what the encoder returns.
        loss: In place of ``head``: a function of the module and a batch of one sample that returns
            its loss, or the name of a method of the module that takes the batch.

    Raises:
        StaError: It lacks one of them.
    """
    found: dict[str, nn.Module] = {}
    for role, path in (("encoder", encoder), *((("head", head),) if loss is None else ())):
        try:
            found[role] = module.get_submodule(path)
        except AttributeError as error:
            raise StaError(
                f"{type(module).__name__} has no {path!r} to score: its logits must be head(encoder(images)), as those of "
                "CLIPClassifier are. ImportanceScoring takes other names (encoder, head), or a loss."
            ) from error
    if isinstance(loss, str):
        method = getattr(module, loss, None)
        if not callable(method):
            raise StaError(f"loss={loss!r} was asked for, but {type(module).__name__} has no such method.")
        return Scorable(module, found["encoder"], None, method, encoder)
    of_batch = None if loss is None else lambda batch: loss(module, batch)
    return Scorable(module, found["encoder"], found.get("head"), of_batch, encoder)


def floating(module: nn.Module) -> dict[str, Tensor]:
    """The floating-point tensors of a module, detached."""
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def encoder_settings(module: LightningModule) -> tuple[str, str | None, int | None]:
    """Name, pretrained weights and image size of the encoder that a fine-tuning began with.

    Raises:
        StaError: The module does not tell its encoder.
    """
    hparams = dict(getattr(module, "hparams", {}))
    if "encoder" not in hparams:
        raise StaError(
            f"The measure needs the pretrained weights, but {type(module).__name__} does not tell its encoder. Score a "
            "CLIPClassifier, or use a measure without 'delta'."
        )
    return hparams["encoder"], hparams.get("pretrained"), hparams.get("image_size")


def pretrained_weights(module: LightningModule) -> dict[str, Tensor]:
    """The weights that the module's fine-tuning started from, on its device.

    Raises:
        StaError: The module does not tell its encoder.
    """
    return floating(build_encoder(*encoder_settings(module)).to(module.device))
