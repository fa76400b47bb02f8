"""The pretraining corpus for Lightning: captioned pictures, and the suite's validation pictures."""

from __future__ import annotations

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sta_lightning.tasks.miniature.corpus import corpus
from sta_lightning.tasks.miniature.scenes import SCENES, render

MEAN, STD = 0.5, 0.5
"""The normalisation of the embedded encoder's input, alike for all channels."""


def to_input(images: Tensor) -> Tensor:
    """Turn bytes ``[B, 3, 32, 32]`` into the embedded encoder's input."""
    return (images.float() / 255 - MEAN) / STD


class CorpusDataset(Dataset[tuple[Tensor, str]]):
    """The first ``size`` picture-caption pairs of the corpus, rendered a batch at a time."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, str]]:
        images, captions = corpus(np.asarray(indices, dtype=np.int64))
        return list(zip(torch.from_numpy(images), captions, strict=True))


def collate(pairs: list[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
    """Join pairs into the encoder's input ``[B, 3, 32, 32]`` and a list of captions."""
    return to_input(torch.stack([image for image, _ in pairs])), [caption for _, caption in pairs]


class CorpusDataModule(L.LightningDataModule):
    """Pairs for contrastive pretraining of the embedded CLIP.

    Args:
        size: Pairs in an epoch. Pair i is a pure function of the suite's version and i.
        batch_size: Pairs in a batch; each is contrasted with all others of its batch.
        validation_size: Pictures of each of the seven sets' validation splits on which zero-shot
            accuracy is watched.
        num_workers: Processes that render.
    """

    def __init__(
        self, size: int = 1_000_000, batch_size: int = 256, validation_size: int = 240, num_workers: int = 0
    ) -> None:
        super().__init__()
        self.size, self.batch_size, self.validation_size = size, batch_size, validation_size
        self.num_workers = num_workers
        self.validation_names = tuple(SCENES)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, str]]:
        """Return the corpus in index order (its order is random already)."""
        return DataLoader(
            CorpusDataset(self.size),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            drop_last=True,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> list[DataLoader[tuple[Tensor, ...]]]:
        """Return one loader a set, in the order of ``validation_names``."""
        loaders = []
        for name in self.validation_names:
            images, labels = render(name, "validation", np.arange(self.validation_size))
            data = TensorDataset(to_input(torch.from_numpy(images)), torch.from_numpy(labels))
            loaders.append(DataLoader(data, batch_size=self.batch_size))
        return loaders
