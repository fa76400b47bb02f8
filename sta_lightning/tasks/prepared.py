"""A data set in an encoder's terms, and the order in which training goes through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override

from sta_lightning.tasks.preprocess import Preprocess


class Turn(NamedTuple):
    """An image's turn in training: which one, in which epoch. It decides the random crop."""

    image: int
    epoch: int


class EncoderInput(Dataset[tuple[Tensor, int]], ABC):
    """Images ready for an encoder: ``(float32 [3, S, S], label)``.

    A loader asks for a whole batch at once, which is resized and normalised in a few calls.

    Attributes:
        preprocess: The encoder's preprocessing.
    """

    preprocess: Preprocess

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def pixels(self, indices: Sequence[Any]) -> tuple[Tensor, list[int]]:
        """Return images before normalisation, uint8 ``[B, 3, S, S]``, and their labels."""

    def __getitem__(self, index: Any) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[Any]) -> list[tuple[Tensor, int]]:
        pixels, labels = self.pixels(indices)
        return list(zip(self.preprocess.normalize(pixels).unbind(0), labels, strict=True))


class PreparedDataset(EncoderInput):
    """Images of a task, resized and cropped as they are asked for.

    Args:
        base: A map-style data set of ``(PIL image or uint8 tensor, label)``.
        preprocess: The encoder's preprocessing.
        augment: Whether crops are random.
        seed: Seed of the random crops. A crop follows from the seed, the image's index and the
            epoch alone: it is the same on any number of processes and workers, and in a fit that
            was resumed. PyTorch's global random state is left alone.
    """

    def __init__(
        self, base: Dataset[Any], preprocess: Preprocess, *, augment: bool = False, seed: int = 0
    ) -> None:
        self.base, self.preprocess, self.augment, self.seed = base, preprocess, augment, seed

    def __len__(self) -> int:
        return len(cast(Any, self.base))

    @override
    def pixels(self, indices: Sequence[int | Turn]) -> tuple[Tensor, list[int]]:
        """Return images before normalisation, uint8 ``[B, 3, S, S]``, and their labels.

        Without a turn's epoch, a random crop is that of epoch 0.
        """
        turns = [index if isinstance(index, Turn) else Turn(index, 0) for index in indices]
        samples = self._samples([turn.image for turn in turns])
        crops = self._crops(turns) if self.augment else None
        pixels = self.preprocess.pixels([sample[0] for sample in samples], crops)
        return pixels, [int(sample[1]) for sample in samples]

    @property
    def in_memory(self) -> bool:
        """Whether the images are there as tensors, so that nothing is decoded."""
        return len(self) == 0 or isinstance(self._samples([0])[0][0], Tensor)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return images in the centre crop, float32 ``[B, 3, S, S]``, without their labels."""
        return self.preprocess.batch([sample[0] for sample in self._samples(indices)])

    def _samples(self, indices: Sequence[int]) -> Sequence[Any]:
        batched = getattr(self.base, "__getitems__", None)
        found = batched(list(indices)) if callable(batched) else [self.base[index] for index in indices]
        return cast(Sequence[Any], found)

    def _crops(self, turns: Sequence[Turn]) -> Tensor:
        # Imported here: only training with random crops needs it, and the suite beside it takes
        # time to import.
        from sta_lightning.tasks.miniature.random import Uniforms, image_keys

        numbers = np.array([(turn.epoch << 32) + turn.image for turn in turns], dtype=np.int64)
        return torch.from_numpy(Uniforms(image_keys(f"crop/{self.seed}", numbers)).many(3))


def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """Return the order of an epoch's images; epochs count from 0."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return torch.randperm(size, generator=generator).tolist()


class EpochSampler(DistributedSampler[Any]):
    """A random order of seed and epoch alone, and a process's share of it: r, r + processes, ….

    A resumed fit meets the order of an unbroken one, and the k-th batches of all processes together
    are the k-th batch that one process would take with as large a batch. Where the images cannot be
    shared out evenly, the first ones of the order stand at the end of some shares once more, and
    :func:`sta_lightning.modules.padding.training_share` leaves them out of the loss.

    Lightning sets the epoch through ``set_epoch``; without it, every pass takes the next one. A
    data set with random crops gets :class:`Turn` in place of numbers.

    Attributes:
        first: How many images of the next pass are left out, in a fit that goes on in the middle of
            an epoch.

    Args:
        dataset: Anything with a length.
        seed: Seed of all orders.
        processes: How many processes share the images.
        rank: Which of them this is.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, processes: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, processes, rank, seed=seed)
        self.first = 0

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        first, self.first = self.first, 0
        order = epoch_order(len(cast(Any, self.dataset)), self.seed, epoch)
        places = range(self.rank, self.total_size, self.num_replicas)[first:]
        filled = [order[place % len(order)] for place in places]
        augmented = getattr(self.dataset, "augment", False)
        return iter([Turn(index, epoch) for index in filled] if augmented else filled)


class TrainingLoader(DataLoader[tuple[Tensor, int]]):
    """Begins where the trainer stands: at an epoch's first batch, or where a checkpoint was left.

    Args:
        dataset: The images.
        trainer: Whose fit it is for; ``None`` for none.
        **options: Those of a ``DataLoader``, by name: Lightning makes such a loader anew with
            another ``sampler``.
    """

    def __init__(self, dataset: Dataset[Any], *, trainer: Any, **options: Any) -> None:
        super().__init__(dataset, **options)
        self._trainer = trainer

    def __iter__(self) -> Any:
        trainer, sampler, size = self._trainer, cast(Any, self.sampler), len(self)
        if trainer is not None and trainer.training:
            limit = trainer.limit_train_batches  # a number of batches, or a share of them
            size = int(size * limit) if isinstance(limit, float) else min(size, limit)
            loop = trainer.fit_loop
            done = loop.epoch_loop.batch_progress.current.processed if loop.restarting else 0
            # Lightning sets the epoch only after workers have begun to load.
            sampler.epoch = trainer.current_epoch + done // size
            sampler.first = done % size * cast(int, self.batch_size)
        return super().__iter__()

    # By these Lightning tells a loader that can go on from one that would begin anew, of which it
    # warns.

    def state_dict(self) -> dict[str, Any]:
        """Nothing: where a fit stands is in the trainer's own state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""
