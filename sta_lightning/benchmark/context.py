"""One seed of a benchmark: its models, what is scored on them, merging and evaluating."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import Subset
from typing_extensions import override

from sta_lightning.arithmetic import Merged
from sta_lightning.benchmark.entries import MethodEntry
from sta_lightning.benchmark.settings import BenchmarkSettings
from sta_lightning.callbacks import score
from sta_lightning.encoders.pretrained import built_pretrained
from sta_lightning.engine import ForgettingJob, FusionJob, Pretrained, TaskSource
from sta_lightning.errors import StaError
from sta_lightning.experiment.images import EvaluationData, Remembered
from sta_lightning.experiment.models import SCORE_SOURCE, Models
from sta_lightning.experiment.settings import ModelSettings
from sta_lightning.experiment.steps import StepRunner
from sta_lightning.experiment.suite import Suite
from sta_lightning.modules import CLIPClassifier, evaluate_many
from sta_lightning.modules.several import Weights
from sta_lightning.tasks import get_task
from sta_lightning.tasks.split import split_indices
from sta_lightning.tasks.task import Split

MakeRunner = Callable[[Path], StepRunner]

TOGETHER = 8
"""Models that are in memory at once while images go through all of them."""


class BenchmarkSuite(Suite):
    """A suite whose control can choose a coefficient too, even where only test images of it are published.

    Args:
        settings: of the models.
        memory: where evaluation images are kept, which are those of every seed; nothing for a
            memory of its own.
    """

    def __init__(self, settings: ModelSettings, memory: BenchmarkSuite | None = None) -> None:
        super().__init__(settings)
        self._known: dict[tuple[str, Split], str | None] = {}
        if memory is not None:
            self._memory, self._remembered, self._known = memory._memory, memory._remembered, memory._known

    @override
    def images(self, task: str, split: Split) -> Remembered:
        """As the suite's; of a control without validation images, a fixed part of its test images serves in their place.

        That part is the one that :func:`~sta_lightning.tasks.split.split_indices` sets aside, and
        it is never tested on.
        """
        if not self._sets_aside(task):
            return super().images(task, split)
        if (task, split) not in self._remembered:
            whole = self.datamodule(task).dataset("test")
            kept, aside = split_indices(len(whole))
            part = Subset(whole, kept if split == "test" else aside)
            self._remembered[task, split] = Remembered(part, self._memory)
        return self._remembered[task, split]

    @override
    def identity(self, split: Split, *tasks: str) -> dict[str, Any]:
        """As the suite's, with what tells when the images themselves change."""
        return super().identity(split, *tasks) | {
            "images": {name: self._fingerprint(name, split) for name in tasks}
        }

    def _fingerprint(self, name: str, split: Split) -> str | None:
        opened: Split = "test" if split == "validation" and self._sets_aside(name) else split
        if (name, opened) not in self._known:
            self._known[name, opened] = self._told(name, opened)
        return self._known[name, opened]

    def _told(self, name: str, split: Split) -> str | None:
        member = self.members[name]
        task = get_task(member.spec)
        if split not in task.splits:  # a control has test images alone
            return None
        try:
            return task.fingerprint(split, member.root)
        except StaError:  # a task of one's own that cannot tell
            return None

    @override
    def _limit(self, task: str, split: Split) -> int | None:
        return super()._limit(task, "test" if split == "validation" and self._sets_aside(task) else split)

    def _sets_aside(self, task: str) -> bool:
        return task == self.control and "validation" not in get_task(self.members[task].spec).splits


class SeedModels(Models):
    """The models of one seed, fine-tuned here or found."""

    def __init__(self, suite: Suite, runner: StepRunner, runs: Path, finetuned: str | None) -> None:
        super().__init__(suite, runner, runs)
        self._given = finetuned

    def make_heads(self) -> None:
        """Make every head, the control's too."""
        for name in self.suite.members:
            self.heads[name] = self._head(name)

    @override
    def _finetuned(self, task: str) -> Path:
        if self._given is None:
            return super()._finetuned(task)
        path = Path(self._given.format(task=task, seed=self.suite.settings.seed))
        if not path.is_file():
            raise StaError(
                f"finetuned: the encoder of task {task!r}, seed {self.suite.settings.seed}, is not there: '{path}'. Put it "
                "there, or leave `finetuned` out to fine-tune."
            )
        return path

    def encoder(self, task: str) -> Path:
        """The fine-tuned encoder of a task."""
        return self._finetuned(task)


class SeedContext:
    """Everything of one seed, made when it is first asked for.

    Args:
        settings: of the benchmark, checked and expanded.
        seed: the seed.
        runner: makes what does the steps below a folder.
        memory: the suite of another seed, whose evaluation images are the same.
    """

    def __init__(
        self,
        settings: BenchmarkSettings,
        seed: int,
        runner: MakeRunner = StepRunner,
        memory: BenchmarkSuite | None = None,
    ) -> None:
        self.settings, self.seed = settings, seed
        self.folder = Path(settings.output) / f"seed_{seed}"
        self.suite = BenchmarkSuite(replace(settings.models, seed=seed), memory)
        self.runner = runner(self.folder / "steps")
        self.models = SeedModels(self.suite, self.runner, self.folder / "tensorboard", settings.finetuned)
        self._encoders: dict[str, Path] = {}
        self._statistics: dict[tuple[str, str, int], Path] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the tables."""
        return self.suite.tasks

    def head(self, name: str) -> Path:
        """The head of a task or of the control."""
        if not self.models.heads:
            self.models.make_heads()
        return self.models.heads[name]

    def encoder(self, task: str) -> Path:
        """The fine-tuned encoder of a task."""
        if task not in self._encoders:
            self.head(task)
            self._encoders[task] = self.models.encoder(task)
        return self._encoders[task]

    def statistic(self, task: str, what: str, samples: int) -> Path:
        """What ``sta score`` writes for a task: an importance by its measure, or ``gram``; one step.

        Args:
            task: the task.
            what: the measure.
            samples: how many training images.
        """
        known = (task, what, samples)
        if known not in self._statistics:
            self._statistics[known] = self._scored(task, what, samples)
        return self._statistics[known]

    def _scored(self, task: str, what: str, samples: int) -> Path:
        suite, settings, encoder, head = self.suite, self.suite.settings, self.encoder(task), self.head(task)
        file = "scores.safetensors"

        def work(folder: Path) -> dict[str, Any]:
            module = CLIPClassifier(
                encoder=settings.encoder,
                task=suite.members[task].spec,
                pretrained=settings.pretrained,
                weights=str(encoder),
                head=str(head),
                image_size=settings.image_size,
            )
            data = suite.datamodule(task)
            score(
                self.trainer(),
                module,
                data,
                output=folder / file,
                measure=what,
                samples=samples,
                seed=self.seed,
            )
            return {"outcome": f"{what} on {samples} images"}

        key = {
            **suite.identity("train", task),
            "measure": what,
            "samples": samples,
            "seed": self.seed,
        }
        files = {**suite.files(task), "head": head, "encoder": encoder}
        return self.runner.run(f"scores/{task}/{what}_{samples}", key, work, files, SCORE_SOURCE).file(file)

    @cached_property
    def pretrained(self) -> Pretrained:
        """The pretrained encoder, as a merge takes it."""
        settings = self.suite.settings
        return built_pretrained(settings.encoder, settings.pretrained, settings.image_size)

    @cached_property
    def pretrained_weights(self) -> dict[str, Tensor]:
        """The pretrained encoder's tensors by name."""
        return {
            name: source.read(slice(0, source.shape.numel()), source.dtype).reshape(source.shape)
            for name, source in self.pretrained.tensors.items()
        }

    def sources(
        self, entry: MethodEntry, tasks: Sequence[str], *, forgetting: bool = False
    ) -> dict[str, TaskSource]:
        """The files of the tasks that a method reads."""
        what = entry.statistic(forgetting=forgetting)
        samples = entry.samples or self.settings.models.samples
        found: dict[str, TaskSource] = {}
        for task in tasks:
            scores = None if what is None else str(self.statistic(task, what, samples))
            found[task] = TaskSource(
                finetuned=str(self.encoder(task)),
                importance=None if what == "gram" else scores,
                head=str(self.head(task)),
                gram=scores if what == "gram" else None,
            )
        return found

    def inputs(self, sources: Mapping[str, TaskSource], *more: str) -> dict[str, Path]:
        """The files behind some sources, and the heads of further sets, for a step's key."""
        found = self.suite.files(*sources, *more)
        for task, source in sources.items():
            for role in ("finetuned", "importance", "gram"):
                path = getattr(source, role)
                if path is not None:
                    found[f"{role}/{task}"] = Path(path)
        return found | {f"head/{name}": self.head(name) for name in (*sources, *more)}

    def fuse(self, entry: MethodEntry, tasks: Sequence[str]) -> Merged:
        """One model for the tasks, by a method's settings."""
        job = FusionJob(
            self.sources(entry, tasks),
            entry.method,
            entry.make(self.seed),
            measure=entry.measure,
            dare=entry.dropping(self.seed),
        )
        return job.in_memory(self.pretrained)

    def forget(self, entry: MethodEntry, task: str, more: Sequence[Path] = ()) -> Merged:
        """The pretrained model without a task, by a method's settings."""
        job = ForgettingJob(
            task,
            self.sources(entry, [task], forgetting=True)[task],
            entry.method,
            entry.make(self.seed, forgetting=True),
            more=[str(path) for path in more],
            measure=entry.measure,
        )
        return job.in_memory(self.pretrained)

    def evaluate(
        self, models: Mapping[str, Weights], tasks: Sequence[str], split: Split, *, control: bool = False
    ) -> dict[str, dict[str, float]]:
        """Accuracy in percent by model and set; every batch of images goes through all the models."""
        suite, settings = self.suite, self.suite.settings
        found = evaluate_many(
            models,
            self.images(tasks, split, control=control),
            encoder=settings.encoder,
            pretrained=settings.pretrained,
            heads={name: str(self.head(name)) for name in (*tasks, *([suite.control] if control else []))},
            image_size=settings.image_size,
            group=TOGETHER,
            trainer=self.trainer(),
        )
        return {
            model: {name: 100 * value for name, value in accuracy.items()}
            for model, accuracy in found.items()
        }

    def images(self, tasks: Sequence[str], split: Split, *, control: bool = False) -> EvaluationData:
        """Loaders over evaluation images in memory."""
        return self.suite.evaluation(tuple(tasks), split, control=control)

    def trainer(self) -> Trainer:
        """A trainer that tells nothing."""
        return Trainer(
            accelerator=self.suite.settings.accelerator,
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )


class Context:
    """Every seed of a benchmark.

    Args:
        settings: checked and expanded.
        runner: see :class:`SeedContext`.
    """

    def __init__(self, settings: BenchmarkSettings, runner: MakeRunner = StepRunner) -> None:
        self.settings = settings
        self._runner = runner
        self._seeds: dict[int, SeedContext] = {}

    @property
    def opened(self) -> list[SeedContext]:
        """The seeds that were asked for."""
        return list(self._seeds.values())

    def seed(self, seed: int) -> SeedContext:
        """One seed."""
        if seed not in self._seeds:
            memory = next((one.suite for one in self._seeds.values()), None)
            self._seeds[seed] = SeedContext(self.settings, seed, self._runner, memory)
        return self._seeds[seed]


def state_of(merged: Merged) -> dict[str, Tensor]:
    """A merged model's tensors, as an evaluation takes them."""
    return {
        name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        for name, tensor in merged.weights.items()
    }
