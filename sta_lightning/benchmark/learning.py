"""AdaMerging inside a benchmark: on the test images that are in memory already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from sta_lightning.arithmetic.registry import LEARNED_METHODS
from sta_lightning.benchmark.context import SeedContext
from sta_lightning.benchmark.entries import MethodEntry
from sta_lightning.experiment.images import Remembered, read
from sta_lightning.modules.adamerging import AdaMerging
from sta_lightning.modules.learning import learn
from sta_lightning.tasks.unlabelled import Step, Steps


@dataclass(frozen=True)
class _Images:
    """Evaluation images in memory, without their labels."""

    data: Remembered

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Images ``[B, 3, S, S]``."""
        return torch.stack([image for image, _ in read(self.data, list(indices))])


class _Unlabelled(LightningDataModule):
    """A batch of test images of every task at each step."""

    def __init__(self, one: SeedContext, tasks: Sequence[str], batch_size: int) -> None:
        super().__init__()
        self.task_names = tuple(tasks)
        images = {task: _Images(one.suite.images(task, "test")) for task in tasks}
        self._steps = Steps(images, batch_size, one.seed)

    def train_dataloader(self) -> DataLoader[Step]:
        """Step after step, without an end."""
        return DataLoader(self._steps, batch_size=None)


def adamerged(one: SeedContext, entry: MethodEntry, tasks: Sequence[str]) -> dict[str, Tensor]:
    """The weights that AdaMerging learns for the tasks.

    Args:
        one: models and images.
        entry: of the method ``adamerging``.
        tasks: what is merged.
    """
    chosen = {**LEARNED_METHODS[entry.method].settings, **entry.settings}
    steps, batch_size = int(chosen.pop("steps")), int(chosen.pop("batch_size"))
    settings = one.suite.settings
    module = AdaMerging(
        {one.suite.members[task].spec: source for task, source in one.sources(entry, tasks).items()},
        encoder=settings.encoder,
        pretrained=settings.pretrained,
        image_size=settings.image_size,
        **chosen,
    )
    images = _Unlabelled(one, tasks, batch_size)
    return learn(module, images, steps=steps, seed=one.seed, accelerator=settings.accelerator)
