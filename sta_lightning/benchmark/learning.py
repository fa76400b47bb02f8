"""Merges by images inside a benchmark: on those in memory already, without their labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Subset

from sta_lightning.arithmetic.registry import LEARNED_METHODS
from sta_lightning.benchmark.evaluation import device_of
from sta_lightning.benchmark.images import Remembered, Suite
from sta_lightning.benchmark.settings import MethodEntry
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.engine import FusionOptions, Pretrained, TaskSource
from sta_lightning.modules.adamerging import AdaMerging
from sta_lightning.modules.by_images import Surroundings, checked_settings, resolved
from sta_lightning.modules.learned import learn
from sta_lightning.tasks.unlabelled import HeldImages


def learned(
    suite: Suite, entry: MethodEntry, sources: Mapping[str, TaskSource], seed: int
) -> dict[str, Tensor]:
    """The weights that AdaMerging has for some tasks; the seed orders the test images."""
    settings, chosen = suite.settings, {**LEARNED_METHODS[entry.method].settings, **entry.settings}
    steps, batch_size = int(chosen.pop("steps")), int(chosen.pop("batch_size"))
    module = AdaMerging(
        {suite.members[task].spec: source for task, source in sources.items()},
        encoder=settings.encoder,
        pretrained=settings.pretrained,
        image_size=settings.image_size,
        **chosen,
    )
    data = HeldImages({task: suite.images(task, "test") for task in sources}, batch_size, seed)
    return learn(module, data, steps=steps, seed=seed, accelerator=settings.accelerator)


def merged_by_images(
    suite: Suite,
    entry: MethodEntry,
    sources: Mapping[str, TaskSource],
    seed: int,
    pretrained: Pretrained,
    folder: Path,
) -> dict[str, Tensor]:
    """The weights of a method by images; leaves what was found in ``about.json``."""
    settings = suite.settings
    count = entry.samples or settings.samples
    options = FusionOptions(
        {**sources},
        encoder=settings.encoder,
        pretrained=settings.pretrained,
        image_size=settings.image_size,
        method=entry.method,
        settings={"samples": count, **entry.settings},
        seed=seed,
    )
    around = Surroundings(
        pretrained,
        build_encoder(settings.encoder, settings.pretrained, settings.image_size).eval(),
        {task: ClassificationHead.load(str(source.head)).eval() for task, source in sources.items()},
        unlabelled(suite, checked_settings(options)["samples"], list(sources), seed),
        {task: suite.members[task].spec for task in sources},
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
