"""A data set in an encoder's terms, and the order in which training goes through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, RandomSampler, get_worker_info

from sta_lightning.tasks.preprocess import Preprocess


class PreparedDataset(Dataset[tuple[Tensor, int]]):
    """Images ready for an encoder: ``(float32 [3, S, S], label)``.

    A loader asks for a whole batch at once, which is resized and normalised in a few calls.

    Args:
        base: A map-style data set of ``(PIL image or uint8 tensor, label)``.
        preprocess: The encoder's preprocessing.
        augment: Whether crops are random.
        seed: Seed of the random crops. They come from a generator of their own, so that PyTorch's global
            random state is left alone; in worker processes its seed is the one that the loader gives each
            worker.
    """

    def __init__(
        self, base: Dataset[Any], preprocess: Preprocess, *, augment: bool = False, seed: int = 0
    ) -> None:
        self.base = base
        self.preprocess = preprocess
        self.augment = augment
        self.seed = seed
        self._crops: tuple[int, torch.Generator] | None = None

    def __len__(self) -> int:
        return len(cast(Any, self.base))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        batched = getattr(self.base, "__getitems__", None)
        samples = batched(indices) if callable(batched) else [self.base[index] for index in indices]
        images = self.preprocess.batch([sample[0] for sample in samples], self._generator())
        return [(image, int(sample[1])) for image, sample in zip(images.unbind(0), samples, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_crops": None}

    def _generator(self) -> torch.Generator | None:
        if not self.augment:
            return None
        worker = get_worker_info()
        seed = self.seed if worker is None else worker.seed
        if self._crops is None or self._crops[0] != seed:
            self._crops = (seed, torch.Generator().manual_seed(seed))
        return self._crops[1]


class EpochSampler(RandomSampler):
    """A random order that depends on seed and epoch alone: a resumed fit meets that of an unbroken one.

    Lightning tells the epoch through ``set_epoch``; without it, every pass takes the next one.

    Args:
        dataset: Anything with a length.
        seed: Seed of all orders.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        super().__init__(cast(Any, dataset))
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        self.epoch += 1
        return iter(torch.randperm(len(self), generator=generator).tolist())
