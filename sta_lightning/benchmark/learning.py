"""Learned merges inside a benchmark: on images that are in memory already, without their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from sta_lightning.arithmetic.registry import LEARNED_METHODS
from sta_lightning.benchmark.images import Remembered, Suite
from sta_lightning.benchmark.settings import MethodEntry
from sta_lightning.engine import TaskSource
from sta_lightning.modules.adamerging import AdaMerging
from sta_lightning.modules.distilled import DistilledMerging
from sta_lightning.modules.learned import LearnedMerging, learn
from sta_lightning.tasks.unlabelled import Step, Steps

_MODULES: Mapping[str, type[LearnedMerging]] = {
    module.method: module for module in (AdaMerging, DistilledMerging)
}


class _Unlabelled(LightningDataModule):
    """A batch of images of every task at each step."""

    def __init__(self, images: Mapping[str, Remembered], batch_size: int, seed: int) -> None:
        super().__init__()
        self.task_names = tuple(images)
        self._steps = Steps(images, batch_size, seed)

    def train_dataloader(self) -> DataLoader[Step]:
        """Step after step, without an end."""
        return DataLoader(self._steps, batch_size=None)


def learned(
    suite: Suite, entry: MethodEntry, sources: Mapping[str, TaskSource], seed: int
) -> dict[str, Tensor]:
    """The weights that a learned merge has for some tasks; the seed draws and orders the images."""
    card = LEARNED_METHODS[entry.method]
    chosen = {**card.settings, **entry.settings}
    steps, batch_size = int(chosen.pop("steps")), int(chosen.pop("batch_size"))
    settings = suite.settings
    module = _MODULES[entry.method](
        {suite.members[task].spec: source for task, source in sources.items()},
        encoder=settings.encoder,
        pretrained=settings.pretrained,
        image_size=settings.image_size,
        **chosen,
    )
    if card.data == "unlabelled test images":
        images = {task: suite.images(task, "test") for task in sources}
    else:
        count = entry.samples or settings.samples
        images, batch_size = samples(suite, count, list(sources), seed), min(batch_size, count)
    data = _Unlabelled(images, batch_size, seed)
    return learn(module, data, steps=steps, seed=seed, accelerator=settings.accelerator)


def samples(suite: Suite, count: int, tasks: Sequence[str], seed: int) -> dict[str, Remembered]:
    """Training images of every task, those that ``sta score`` draws by the same seed."""
    found = {}
    for task in tasks:
        data = suite.datamodule(task, seed)
        found[task] = suite.remembered(Subset(data.dataset("train"), data.scoring_samples(count, seed)))
    return found
