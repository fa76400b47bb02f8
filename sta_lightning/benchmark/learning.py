"""AdaMerging inside a benchmark: on the test images that are in memory already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from sta_lightning.arithmetic.registry import LEARNED_METHODS
from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.settings import MethodEntry
from sta_lightning.engine import TaskSource
from sta_lightning.modules.adamerging import AdaMerging, learn
from sta_lightning.tasks.unlabelled import Step, Steps


class _Unlabelled(LightningDataModule):
    """A batch of test images of every task at each step."""

    def __init__(self, suite: Suite, tasks: Sequence[str], batch_size: int, seed: int) -> None:
        super().__init__()
        self.task_names = tuple(tasks)
        images = {task: suite.images(task, "test") for task in tasks}
        self._steps = Steps(images, batch_size, seed)

    def train_dataloader(self) -> DataLoader[Step]:
        """Step after step, without an end."""
        return DataLoader(self._steps, batch_size=None)


def adamerged(
    suite: Suite, entry: MethodEntry, sources: Mapping[str, TaskSource], seed: int
) -> dict[str, Tensor]:
    """The weights that AdaMerging learns for some tasks; the seed orders the images."""
    chosen = {**LEARNED_METHODS[entry.method].settings, **entry.settings}
    steps, batch_size = int(chosen.pop("steps")), int(chosen.pop("batch_size"))
    settings = suite.settings
    module = AdaMerging(
        {suite.members[task].spec: source for task, source in sources.items()},
        encoder=settings.encoder,
        pretrained=settings.pretrained,
        image_size=settings.image_size,
        **chosen,
    )
    images = _Unlabelled(suite, list(sources), batch_size, seed)
    return learn(module, images, steps=steps, seed=seed, accelerator=settings.accelerator)
