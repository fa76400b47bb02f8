"""Variants of the distilled merge: bases, learning rates, steps, and when to stop.

    sta benchmark --config configs/benchmark/miniature.yaml
    python -m scripts.search.distilled runs/benchmark/miniature --steps 15 30 60 100

The benchmark's fine-tuned models are what is merged. A variant is fitted once on all of the
unlabelled training images (32 a task), and once on the first half of them, whose other half says
when to stop. ``search.jsonl`` gets a line for every variant, seed and number of steps as it is
found: the divergence on both halves, and accuracies in percent on validation and test images. A
variant and its steps are chosen by the mean validation accuracy over the seeds; the test accuracy
decides nothing. ``random`` is the control of the second base: a drawn tensor in its place.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from sta_lightning.benchmark.evaluation import accuracy, classified, device_of
from sta_lightning.benchmark.kinds import every_seed
from sta_lightning.benchmark.learning import unlabelled
from sta_lightning.benchmark.models import Models
from sta_lightning.benchmark.settings import BenchmarkSettings, MethodEntry, ModelSettings
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.modules.distilled import DistilledMerging
from sta_lightning.modules.judge import Judge
from sta_lightning.modules.learned import LearnedMerging, learn

RANDOM = f"{Path(__file__)}:random_vector"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "swudi_a": {"merges": ["swudi_a"]},
    "swudi_a, spectral_sta": {},
    "swudi_a, random": {"merges": ["swudi_a", RANDOM]},
    "swudi_a, spectral_sta, slow": {"learning_rate": 3e-3},
    "swudi_a, spectral_sta, esm": {"merges": ["swudi_a", "spectral_sta", "esm"]},
    # Fitted to every layer's outputs in closed form, and from there to the predictions.
    "anchored, swudi_a": {"merges": ["anchored", "swudi_a"], "init": 1.0},
    "esm, swudi_a, spectral_sta": {"merges": ["esm", "swudi_a", "spectral_sta"], "init": 1.0},
}


def random_vector(pretrained: Tensor, deltas: Tensor) -> Tensor:
    """A drawn tensor as long as the sum of the task vectors ``[N, *shape]``."""
    drawn = torch.randn(deltas.shape[1:], generator=torch.Generator().manual_seed(deltas.numel()))
    drawn = drawn.to(deltas)
    return drawn * (deltas.sum(0).norm() / drawn.norm())


class Images(LightningDataModule):
    """The same images of every task at each step: ``task -> [B, 3, S, S]``."""

    def __init__(self, images: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.task_names, self._images = tuple(images), dict(images)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """One batch, which is begun again."""
        return DataLoader([self._images], batch_size=None)  # type: ignore[arg-type]


class Seed:
    """What variants of one seed are fitted to and measured on."""

    def __init__(self, own: Models) -> None:
        self.own, self.tasks = own, own.suite.tasks
        settings = own.suite.settings
        self.sources = own.sources(MethodEntry("distilled"), self.tasks)
        self.images = unlabelled(own.suite, settings.samples, self.tasks, own.seed)
        self._heads = {task: own.head(task) for task in self.tasks}

    def half(self, second: bool) -> dict[str, Tensor]:
        """The first or second half of every task's images."""
        return {task: images.chunk(2)[second] for task, images in self.images.items()}

    def judge(self, images: Mapping[str, Tensor]) -> Judge:
        """What tells the divergence on some images."""
        settings = self.own.suite.settings
        return Judge(
            build_encoder(settings.encoder, settings.pretrained, settings.image_size).eval(),
            {task: self.own.encoder(task) for task in self.tasks},
            {task: ClassificationHead.load(str(head)).eval() for task, head in self._heads.items()},
            images,
            device_of(settings.accelerator),
        )

    def accuracies(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean over the tasks in percent, by split."""
        suite, found = self.own.suite, {}
        for split in ("validation", "test"):
            images = {task: suite.images(task, split) for task in self.tasks}  # type: ignore[arg-type]
            (bits,) = classified([weights], images, self._heads, suite.settings)
            found[split] = round(fmean(map(accuracy, bits.values())), 3)
        return found


class Recorder(Callback):
    """Measures a merge while it is fitted, after some numbers of steps."""

    def __init__(self, steps: Sequence[int], measure: Any) -> None:
        self._steps, self._measure = set(steps), measure

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure if this was one of the steps."""
        if trainer.global_step in self._steps:
            assert isinstance(pl_module, LearnedMerging)
            self._measure(trainer.global_step, pl_module.merged_weights())


def search(
    seeds: Iterable[Models], variants: Mapping[str, Mapping[str, Any]], steps: Sequence[int], log: Path
) -> list[dict[str, Any]]:
    """Fit and measure every variant on every seed; each line is in ``log`` once it is known."""
    rows: list[dict[str, Any]] = []
    for own in seeds:
        seed, settings = Seed(own), own.suite.settings
        parts = {"fitted": seed.judge(seed.half(False)), "held out": seed.judge(seed.half(True))}
        for name, options in variants.items():
            for images, fitted in (("all", seed.images), ("half", seed.half(False))):

                def measure(step: int, weights: Mapping[str, Tensor]) -> None:
                    row = {"variant": name, "images": images, "seed": own.seed, "steps": step}  # noqa: B023
                    row |= {part: round(judge.foretell(weights).mean, 5) for part, judge in parts.items()}  # noqa: B023
                    row |= seed.accuracies(weights)  # noqa: B023
                    rows.append(row)
                    with log.open("a", encoding="utf-8") as file:
                        print(json.dumps(row), file=file)
                    print(json.dumps(row), flush=True)

                module = DistilledMerging(
                    {own.suite.members[task].spec: source for task, source in seed.sources.items()},
                    encoder=settings.encoder,
                    pretrained=settings.pretrained,
                    image_size=settings.image_size,
                    **options,
                )
                learn(module, Images(fitted), steps=max(steps), callbacks=[Recorder(steps, measure)])
    return rows


def chosen(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By variant: the steps that are best on validation, and where the held-out half stops.

    Each with the mean validation and test accuracy over the seeds, the best on validation first.
    """
    rows = list(rows)
    found = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        whole = [row for row in rows if row["variant"] == name and row["images"] == "all"]
        steps = max({row["steps"] for row in whole}, key=lambda step: (_mean(whole, step), -step))
        stopped = []
        for seed in {row["seed"] for row in whole}:
            half = [r for r in rows if (r["variant"], r["images"], r["seed"]) == (name, "half", seed)]
            stop = min(half, key=lambda row: row["held out"])["steps"]
            stopped += [row for row in whole if (row["seed"], row["steps"]) == (seed, stop)]
        best = [row for row in whole if row["steps"] == steps]
        for how, those in (("validation", best), ("held-out half", stopped)):
            means = {split: round(fmean(row[split] for row in those), 2) for split in ("validation", "test")}
            count = sorted({row["steps"] for row in those})
            found.append({"variant": name, "steps by": how, "steps": count, **means})
    return sorted(found, key=lambda row: -row["validation"])


def _mean(rows: Iterable[Mapping[str, Any]], step: int) -> float:
    return fmean(row["validation"] for row in rows if row["steps"] == step)


def main(words: Sequence[str] | None = None) -> None:
    """Search, and print what is chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a benchmark that has fine-tuned the embedded suite")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[15, 30, 60, 100])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--validation_limit", type=int, default=250)
    parser.add_argument("--test_limit", type=int, default=1000)
    parser.add_argument("--tasks", nargs="+", help="those of the benchmark", default=TASKS)
    asked = parser.parse_args(words)
    limits = {"validation_limit": asked.validation_limit, "test_limit": asked.test_limit}
    settings = BenchmarkSettings(
        output=str(asked.folder / "search"),
        models=ModelSettings(tasks=asked.tasks, control="objects", **limits),
        finetuned=f"{asked.folder}/seed_{{seed}}/steps/finetune/{{task}}/encoder.safetensors",
        seeds=asked.seeds,
    )
    variants = {name: VARIANTS[name] for name in asked.variants}
    rows = search(every_seed(settings).values(), variants, asked.steps, asked.folder / "search.jsonl")
    for row in chosen(rows):
        print(json.dumps(row))


TASKS = ["digits", "vehicles", "street_numbers", "traffic_signs", "textures", "land_cover"]

if __name__ == "__main__":
    main()
