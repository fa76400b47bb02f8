"""Merges by images inside a benchmark: on those in memory already, without their labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from sta_lightning.arithmetic.registry import LEARNED_METHODS
from sta_lightning.benchmark.evaluation import device_of
from sta_lightning.benchmark.images import Remembered, Suite
from sta_lightning.benchmark.settings import MethodEntry
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.engine import FusionOptions, Pretrained, TaskSource
from sta_lightning.modules.adamerging import AdaMerging
from sta_lightning.modules.by_images import Surroundings, checked_settings, resolved
from sta_lightning.modules.distilled import DistilledMerging
from sta_lightning.modules.learned import LearnedMerging, learn
from sta_lightning.tasks.unlabelled import Step, Steps

_MODULES: Mapping[str, type[LearnedMerging]] = {
    module.method: module for module in (AdaMerging, DistilledMerging)
}


class _Unlabelled(LightningDataModule):
    """A batch of images of every task at each step."""

    def __init__(self, images: Mapping[str, Remembered], batch_size: int, seed: int, crops: bool) -> None:
        super().__init__()
        self.task_names = tuple(images)
        self._steps = Steps(images, batch_size, seed, crops=crops)

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
    crops = bool(chosen.pop("crops", False))
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
    data = _Unlabelled(images, batch_size, seed, crops)
    return learn(module, data, steps=steps, seed=seed, accelerator=settings.accelerator)


def merged_by_images(
    suite: Suite,
    entry: MethodEntry,
    sources: Mapping[str, TaskSource],
    seed: int,
    pretrained: Pretrained,
    folder: Path,
) -> dict[str, Tensor]:
    """The weights of ``auto`` or RegMean++; leaves what was found in ``about.json``."""
    settings = suite.settings
    count = entry.samples or settings.samples
    options = FusionOptions(
        {**sources}, method=entry.method, settings={"samples": count, **entry.settings}, seed=seed
    )
    around = Surroundings(
        pretrained,
        build_encoder(settings.encoder, settings.pretrained, settings.image_size).eval(),
        {task: ClassificationHead.load(str(source.head)).eval() for task, source in sources.items()},
        unlabelled(suite, checked_settings(options)["samples"], list(sources), seed),
        device_of(settings.accelerator),
    )
    found = resolved(options, around)
    (folder / "about.json").write_text(json.dumps(found.about, indent=1), encoding="utf-8")
    return found.job().in_memory(pretrained).weights


def samples(suite: Suite, count: int, tasks: Sequence[str], seed: int) -> dict[str, Remembered]:
    """Training images of every task, those that ``sta score`` draws by the same seed."""
    found = {}
    for task in tasks:
        data = suite.datamodule(task, seed)
        found[task] = suite.remembered(Subset(data.dataset("train"), data.scoring_samples(count, seed)))
    return found


def unlabelled(suite: Suite, count: int, tasks: Sequence[str], seed: int) -> dict[str, Tensor]:
    """The same images by task, ``[count, 3, S, S]``."""
    return {task: data.batch(range(len(data))) for task, data in samples(suite, count, tasks, seed).items()}
