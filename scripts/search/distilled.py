"""Variants of the distilled merge: coefficients by tensor or row, crops, bases, steps.

    sta benchmark --config configs/benchmark/miniature.yaml
    python -m scripts.search.distilled runs/benchmark/miniature --steps 30 60

The benchmark's fine-tuned models are what is merged; they are read alone, and what the search makes
is in ``--output``. A variant is fitted on the unlabelled training images (32 a task).
``search.jsonl`` gets a line for every variant, seed and number of steps as it is found: the
divergence on the same images uncropped, and accuracies in percent on validation and test images. A
variant and its steps are chosen by the mean validation accuracy over the seeds; the test accuracy
decides nothing. ``drawn`` is the control of a variant's unit: drawn tensors, as long, in place of
all vectors but the start.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from sta_lightning.benchmark.evaluation import accuracy, classified, device_of
from sta_lightning.benchmark.kinds import every_seed
from sta_lightning.benchmark.learning import unlabelled
from sta_lightning.benchmark.models import Models
from sta_lightning.benchmark.settings import BenchmarkSettings, MethodEntry, ModelSettings
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.engine import TaskSource
from sta_lightning.modules.distilled import DistilledMerging
from sta_lightning.modules.frozen import Frozen
from sta_lightning.modules.judge import Judge
from sta_lightning.modules.learned import LearnedMerging, learn
from sta_lightning.tasks.unlabelled import Held, HeldImages

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "tensor": {"granularity": "tensor", "crops": False},
    "tensor, crops": {"granularity": "tensor"},
    "row": {"crops": False},
    "row, crops": {},
    "row, crops, drawn": {"drawn": True},
    "row, crops, swudi_a": {"merges": ["swudi_a"]},
    "row, crops, slow": {"learning_rate": 3e-3},
    "row, crops, esm": {"merges": ["swudi_a", "spectral_sta", "esm"]},
    # Fitted to every layer's outputs in closed form, and from there to the predictions.
    "row, crops, from anchored": {"merges": ["anchored", "swudi_a"], "init": 1.0},
    "row, crops, from average": {"merges": ["average", "swudi_a", "spectral_sta"], "init": 1.0},
}


def drawn(vectors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The first vector, and drawn tensors as long as the others'."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, dict[str, Tensor]] = {}
    for name, vector in vectors.items():
        noise = {key: torch.randn(value.shape, generator=generator) for key, value in vector.items()}
        found[name] = (
            {key: noise[key] * (value.norm() / noise[key].norm()) for key, value in vector.items()}
            if found
            else dict(vector)
        )
    return found


class Drawn(DistilledMerging):
    """The control of the vectors: drawn ones, but for the start."""

    @override
    def read(self, sources: Mapping[str, tuple[str, TaskSource]]) -> Frozen:
        """Read what is merged, and keep the task vectors as what the targets are made from."""
        self._true = super().read(sources)
        return replace(self._true, vectors=drawn(self._true.vectors))

    @override
    def loss(self, task: str, images: Tensor, logits: Tensor) -> Tensor:
        """The distance from the true fine-tuned models."""
        drawn, self._frozen = self._frozen, self._true
        found = super().loss(task, images, logits)
        self._frozen = drawn
        return found


class Seed:
    """What variants of one seed are fitted to and measured on."""

    def __init__(self, own: Models) -> None:
        self.own, self.tasks = own, own.suite.tasks
        settings = own.suite.settings
        self.sources = own.sources(MethodEntry("distilled"), self.tasks)
        self.images = unlabelled(own.suite, settings.samples, self.tasks, own.seed)
        self._heads = {task: own.head(task) for task in self.tasks}

    def judge(self) -> Judge:
        """What tells the divergence on the images."""
        settings = self.own.suite.settings
        return Judge(
            build_encoder(settings.encoder, settings.pretrained, settings.image_size).eval(),
            {task: self.own.encoder(task) for task in self.tasks},
            {task: ClassificationHead.load(str(head)).eval() for task, head in self._heads.items()},
            self.images,
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
        judge = seed.judge()
        for name, given in variants.items():
            options = dict(given)
            crops, module_class = (
                options.pop("crops", True),
                Drawn if options.pop("drawn", False) else DistilledMerging,
            )

            def measure(step: int, weights: Mapping[str, Tensor]) -> None:
                row = {"variant": name, "seed": own.seed, "steps": step}  # noqa: B023
                row |= {"divergence": round(judge.foretell(weights).mean, 5), **seed.accuracies(weights)}  # noqa: B023
                rows.append(row)
                with log.open("a", encoding="utf-8") as file:
                    print(json.dumps(row), file=file)
                print(json.dumps(row), flush=True)

            module = module_class(
                {own.suite.members[task].spec: source for task, source in seed.sources.items()},
                encoder=settings.encoder,
                pretrained=settings.pretrained,
                image_size=settings.image_size,
                **options,
            )
            recorder = Recorder(steps, measure)
            images = {task: Held(each) for task, each in seed.images.items()}
            data = HeldImages(images, settings.samples, own.seed, crops)
            learn(module, data, steps=max(steps), callbacks=[recorder])
    return rows


def chosen(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By variant: the steps that are best on validation, the best variant first.

    With the mean validation and test accuracy over the seeds, and the test accuracies' standard
    deviation.
    """
    rows = list(rows)
    found = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        steps = max({row["steps"] for row in own}, key=lambda step: (_mean(own, step), -step))
        best = [row for row in own if row["steps"] == steps]
        test = [row["test"] for row in best]
        spread = {"± (test)": round(stdev(test), 2)} if len(test) > 1 else {}
        means = {"validation": round(_mean(own, steps), 2), "test": round(fmean(test), 2)}
        found.append({"variant": name, "steps": steps, **means, **spread, "seeds": len(best)})
    return sorted(found, key=lambda row: -row["validation"])


def _mean(rows: Iterable[Mapping[str, Any]], step: int) -> float:
    return fmean(row["validation"] for row in rows if row["steps"] == step)


def main(words: Sequence[str] | None = None) -> None:
    """Search, and print what is chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a benchmark that has fine-tuned the embedded suite")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 60])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--validation_limit", type=int, default=250)
    parser.add_argument("--test_limit", type=int, default=1000)
    parser.add_argument("--tasks", nargs="+", help="those of the benchmark", default=TASKS)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/search"), help="folder of what the search makes"
    )
    asked = parser.parse_args(words)
    if not any(asked.folder.glob("seed_*/steps/finetune")):
        parser.error(
            f"'{asked.folder}' holds no fine-tuned models: give the folder that "
            "`sta benchmark --config configs/benchmark/miniature.yaml` has filled"
        )
    limits = {"validation_limit": asked.validation_limit, "test_limit": asked.test_limit}
    settings = BenchmarkSettings(
        output=str(asked.output),
        models=ModelSettings(tasks=asked.tasks, control="objects", **limits),
        finetuned=f"{asked.folder}/seed_{{seed}}/steps/finetune/{{task}}/encoder.safetensors",
        seeds=asked.seeds,
    )
    variants = {name: VARIANTS[name] for name in asked.variants}
    asked.output.mkdir(parents=True, exist_ok=True)
    rows = search(every_seed(settings).values(), variants, asked.steps, asked.output / "search.jsonl")
    for row in chosen(rows):
        print(json.dumps(row))


TASKS = ["digits", "vehicles", "street_numbers", "traffic_signs", "textures", "land_cover"]

if __name__ == "__main__":
    main()
