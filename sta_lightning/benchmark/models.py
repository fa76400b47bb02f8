"""The models of one seed: made, or found, when first asked for; each file is one step."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from sta_lightning.arithmetic.run import Kept
from sta_lightning.arithmetic.sources import whole
from sta_lightning.arithmetic.vectors import relative_size
from sta_lightning.benchmark.entries import (
    dropping,
    entry_files,
    entry_key,
    entry_source,
    is_learned,
    made,
    statistic,
)
from sta_lightning.benchmark.evaluation import accuracy, classified, device_of, pack, unpack
from sta_lightning.benchmark.finetuning import ENCODER, fine_tune, finetuning_name
from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.learning import learned, merged_by_images, unlabelled
from sta_lightning.benchmark.scoring import HEAD, SCORES, make_head, make_scores
from sta_lightning.benchmark.settings import BenchmarkSettings, Finetuning, MethodEntry
from sta_lightning.benchmark.steps import StepRunner
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.encoders.pretrained import built_pretrained
from sta_lightning.engine import ForgettingJob, FusionJob, Pretrained, TaskSource
from sta_lightning.engine.defaults import BY_IMAGES
from sta_lightning.errors import StaError
from sta_lightning.modules.judge import Judge
from sta_lightning.modules.parts import Weights, read_encoder
from sta_lightning.tasks.task import Split

FUSED = "fused.safetensors"
TOGETHER = 8
"""Models that are in memory at once while images go through all of them."""

_SCORING = ("sta_lightning.benchmark.scoring",)
_FINETUNING = ("sta_lightning.benchmark.finetuning",)
_EVALUATING = (
    "sta_lightning.arithmetic.vectors",
    "sta_lightning.benchmark.evaluation",
    "sta_lightning.benchmark.images",
)


@dataclass(frozen=True)
class Candidate:
    """A model that is to be evaluated: what it depends on, and how it is made.

    Attributes:
        key: settings, for a step's key.
        inputs: files by their role.
        source: modules.
        make: writes what it writes into the step's folder; returns the weights and the shares kept.
        finetuning: how the models that it is made of were fine-tuned.
        tangent: whether its linearisation at the pretrained weights is evaluated.
    """

    key: dict[str, Any]
    inputs: dict[str, Path]
    source: Collection[str]
    make: Callable[[Path], tuple[Weights, Kept]]
    finetuning: Finetuning = "plain"
    tangent: bool = False


@dataclass(frozen=True)
class Measured:
    """A model that was evaluated on some sets.

    Attributes:
        correct: set -> which images were classified rightly, see ``evaluation.unpack``.
        kept: tensor -> task -> share of the entries that the merge keeps; empty of one of several
            candidates.
        seconds: how long it took to make.
        norm: the length of its task vector beside the sum of those that were merged; None of one of
            several candidates, and where nothing was merged.
        foretold: of a merge of all tasks, one candidate alone: its mean ``divergence`` from the
            fine-tuned models, in nats, and ``agreement`` with them, 0 to 1; None of others.
    """

    correct: Mapping[str, str]
    kept: Kept
    seconds: float | None = None
    norm: float | None = None
    foretold: Mapping[str, float] | None = None

    @cached_property
    def accuracy(self) -> dict[str, float]:
        """Set -> accuracy in percent."""
        return {name: accuracy(unpack(text)) for name, text in self.correct.items()}


class Models:
    """Heads, fine-tuned encoders and what is scored on them, and the merges of them, of one seed.

    Args:
        settings: checked and expanded.
        suite: its tasks and images.
        seed: of the fine-tunings and of whatever is drawn.
        peers: the models of every seed, these among them.
        compute: as :class:`~sta_lightning.benchmark.steps.StepRunner` takes it.
    """

    def __init__(
        self,
        settings: BenchmarkSettings,
        suite: Suite,
        seed: int,
        peers: Mapping[int, Models],
        *,
        compute: bool = True,
    ) -> None:
        self.settings, self.suite, self.seed, self.peers = settings, suite, seed, peers
        output = Path(settings.output)
        self.runs = output / "tensorboard" / f"seed_{seed}"
        self.runner = StepRunner(output / f"seed_{seed}" / "steps", compute=compute)
        # A step is asked for by many cells; its inputs are read for its key but once.
        self.head = functools.cache(self._head)
        self.encoder = functools.cache(self._encoder)
        self.statistic = functools.cache(self._statistic)
        self._judge = functools.cache(self._judge_of)

    def _head(self, name: str) -> Path:
        """The head of a task or of the control."""
        suite, key = self.suite, self.suite.identity("train", name)
        make = functools.partial(make_head, suite, name)
        return self.runner.run(f"head/{name}", key, make, suite.files(name), _SCORING).file(HEAD)

    def _encoder(self, task: str, finetuning: Finetuning = "plain") -> Path:
        """The fine-tuned encoder of a task.

        Raises:
            StaError: if it is to be there already, and is not.
        """
        if self.settings.finetuned is not None:
            path = Path(self.settings.finetuned.format(task=task, seed=self.seed))
            if not path.is_file():
                raise StaError(
                    f"finetuned: the encoder of task {task!r}, seed {self.seed}, is not there: '{path}'. "
                    "Put it there, or leave `finetuned` out to fine-tune."
                )
            return path
        suite, settings, head = self.suite, self.suite.settings, self.head(task)
        own = settings.fine_tuning(task)
        key = {
            **suite.identity("train", task),
            "learning_rate": own.learning_rate,
            "epochs": own.epochs,
            "batch_size": own.batch_size,
            "weight_decay": settings.weight_decay,
            "warmup_steps": settings.warmup_steps,
            "validation_limit": settings.validation_limit,
            "seed": self.seed,
        }
        inputs, gram = {**suite.files(task), "head": head}, None
        if finetuning == "linearised":
            key |= {"linearised": True, "learning_rate": settings.linearised_rate or own.learning_rate}
        if finetuning == "spare":
            key["spare_weight"] = settings.spare_weight
            inputs["control_gram"] = gram = self.statistic(suite.control, "gram", settings.samples)
        make = functools.partial(
            fine_tune, suite, task, self.seed, head, runs=self.runs, finetuning=finetuning, gram=gram
        )
        name = f"{finetuning_name(finetuning)}/{task}"
        return self.runner.run(name, key, make, inputs, _FINETUNING).file(ENCODER)

    def _statistic(self, task: str, what: str, samples: int, finetuning: Finetuning = "plain") -> Path:
        """What ``sta score`` writes for a task: an importance by its measure, or ``gram``.

        The control's is that of the pretrained encoder, as none is fine-tuned on it.
        """
        suite, head = self.suite, self.head(task)
        encoder = None if task == suite.control else self.encoder(task, finetuning)
        key = {
            **suite.identity(suite.scored(task), task),
            "measure": what,
            "samples": samples,
            "seed": self.seed,
        }
        make = functools.partial(make_scores, suite, task, self.seed, what, samples, encoder, head)
        inputs = {**suite.files(task), "head": head} | ({} if encoder is None else {"encoder": encoder})
        folder = "scores" if finetuning == "plain" else f"scores_{finetuning}"
        return self.runner.run(f"{folder}/{task}/{what}_{samples}", key, make, inputs, _SCORING).file(SCORES)

    @cached_property
    def pretrained(self) -> Pretrained:
        """The pretrained encoder, as a merge takes it."""
        settings = self.suite.settings
        return built_pretrained(settings.encoder, settings.pretrained, settings.image_size)

    @cached_property
    def pretrained_weights(self) -> dict[str, Tensor]:
        """The pretrained encoder's tensors by name."""
        return {name: whole(source) for name, source in self.pretrained.tensors.items()}

    def sources(self, entry: MethodEntry, tasks: Iterable[str]) -> dict[str, TaskSource]:
        """The files of the tasks that a method reads."""
        what = statistic(entry)
        samples = entry.samples or self.suite.settings.samples
        found: dict[str, TaskSource] = {}
        for task in tasks:
            scores = None if what is None else str(self.statistic(task, what, samples, entry.finetuning))
            found[task] = TaskSource(
                finetuned=str(self.encoder(task, entry.finetuning)),
                importance=None if what == "gram" else scores,
                head=str(self.head(task)),
                gram=scores if what == "gram" else None,
            )
        return found

    def zero_shot(self) -> Candidate:
        """The pretrained encoder."""
        return Candidate({"method": "pretrained"}, {}, (), lambda folder: (self.pretrained_weights, {}))

    def finetuned(self, task: str, finetuning: Finetuning = "plain", tangent: bool = False) -> Candidate:
        """A task's fine-tuned encoder."""
        file = self.encoder(task, finetuning)
        inputs = {f"finetuned/{task}": file}
        return Candidate({"method": "finetuned"}, inputs, (), lambda folder: (file, {}), finetuning, tangent)

    def fused(self, entry: MethodEntry, tasks: Sequence[str]) -> Candidate:
        """One encoder for some tasks."""
        sources = self.sources(entry, tasks)

        def make(folder: Path) -> tuple[Weights, Kept]:
            if entry.method in BY_IMAGES:
                return merged_by_images(self.suite, entry, sources, self.seed, self.pretrained, folder), {}
            if is_learned(entry):
                return learned(self.suite, entry, sources, self.seed), {}
            merged = self._job(entry, sources).in_memory(self.pretrained)
            return merged.weights, merged.kept

        source = {"sta_lightning.engine.fusion", *entry_source(entry)}
        inputs = _files(sources, statistic(entry)) | entry_files(entry)
        key = entry_key(entry, self.seed)
        if entry.method in BY_IMAGES:
            key["samples"] = entry.samples or self.suite.settings.samples
        return Candidate(key, inputs, source, make, entry.finetuning, entry.tangent)

    def written(self, key: str) -> Path:
        """The file of the encoder that a method, as published, makes for all tasks."""
        entry, tasks = self.settings.methods[key], self.suite.tasks
        found = self.fused(entry, tasks)

        def work(folder: Path) -> dict[str, Any]:
            self._job(entry, self.sources(entry, tasks)).write(self.pretrained, folder / FUSED)
            return {}

        return self.runner.run(f"written/{key}", found.key, work, found.inputs, found.source).file(FUSED)

    def _job(self, entry: MethodEntry, sources: Mapping[str, TaskSource]) -> FusionJob:
        method, drops = made(entry, self.seed), dropping(entry, self.seed)
        return FusionJob(sources, entry.method, method, measure=entry.measure, dare=drops)

    def amnesic(self, entry: MethodEntry, task: str, more: Sequence[Path] = ()) -> Candidate:
        """The pretrained encoder without a task; ``more`` are further fine-tunings of it."""
        sources, method = self.sources(entry, [task]), made(entry, self.seed)
        samples = entry.samples or self.suite.settings.samples
        beside = {f"more/{number}": path for number, path in enumerate(more)}
        if method.spares:
            beside["control_gram"] = self.statistic(self.suite.control, "gram", samples)

        def make(folder: Path) -> tuple[Weights, Kept]:
            job = ForgettingJob(
                *(task, sources[task], entry.method, method),
                more=[str(path) for path in more],
                control_gram=str(beside["control_gram"]) if method.spares else None,
                measure=entry.measure,
            )
            merged = job.in_memory(self.pretrained)
            return merged.weights, merged.kept

        inputs = _files(sources, statistic(entry)) | entry_files(entry) | beside
        source = {"sta_lightning.engine.forgetting", *entry_source(entry)}
        return Candidate(entry_key(entry, self.seed), inputs, source, make, entry.finetuning, entry.tangent)

    def measured(
        self, name: str, candidates: Sequence[Candidate], sets: Sequence[str], split: Split
    ) -> list[Measured]:
        """Every candidate, in order, on a split of some tasks (and the control); one step."""
        suite, heads = self.suite, {each: self.head(each) for each in sets}
        tangent = any(each.tangent for each in candidates)  # they are of one entry
        foretells = len(candidates) == 1 and not tangent and self._merges_all(candidates[0])

        def work(folder: Path) -> dict[str, Any]:
            found: list[dict[str, Any]] = []
            for first in range(0, len(candidates), TOGETHER):
                part: list[tuple[Weights, Kept]] = []
                seconds: list[float] = []
                for each in candidates[first : first + TOGETHER]:
                    begun = time.perf_counter()
                    part.append(each.make(folder))
                    seconds.append(round(time.perf_counter() - begun, 3))
                images = {name: suite.images(name, split) for name in sets}
                origin = self.pretrained_weights if tangent else None
                correct = classified([weights for weights, _ in part], images, heads, suite.settings, origin)
                for took, bits in zip(seconds, correct, strict=True):
                    packed = {name: pack(values) for name, values in bits.items()}
                    found.append({"correct": packed, "kept": {}, "seconds": took})
                if len(candidates) == 1:
                    only, made = candidates[0], part[0]
                    found[0] |= {"kept": made[1], "norm": self._norm(only, made[0])}
                    if foretells:
                        found[0]["foretold"] = self._judge(only.finetuning).foretell(made[0]).means
            return {"models": found, "outcome": self._outcome(found)}

        key = {**suite.identity(split, *sets), "models": [each.key for each in candidates]}
        key |= {"tangent": True} if tangent else {}
        key |= {"foretold": suite.settings.samples} if foretells else {}
        inputs = {f"head/{each}": head for each, head in heads.items()} | suite.files(*sets)
        source = set(_EVALUATING)
        if foretells:
            source.add(Judge.__module__)
        for each in candidates:
            inputs |= each.inputs
            source.update(each.source)
        result = self.runner.run(name, key, work, inputs, source).result
        return [Measured(**each) for each in result["models"]]

    def _merges_all(self, candidate: Candidate) -> bool:
        return all(f"finetuned/{task}" in candidate.inputs for task in self.suite.tasks)

    def _judge_of(self, finetuning: Finetuning) -> Judge:
        """What foretells a merge of all tasks, on ``samples`` training images, or all if fewer."""
        suite, tasks, settings = self.suite, self.suite.tasks, self.suite.settings
        there = [len(suite.datamodule(task, self.seed).dataset("train")) for task in tasks]
        return Judge(
            build_encoder(settings.encoder, settings.pretrained, settings.image_size).eval(),
            {task: self.encoder(task, finetuning) for task in tasks},
            {task: ClassificationHead.load(str(self.head(task))).eval() for task in tasks},
            unlabelled(suite, min(settings.samples, *there), tasks, self.seed),
            device_of(settings.accelerator),
        )

    def _norm(self, candidate: Candidate, weights: Weights) -> float | None:
        """How long a merged task vector is beside the sum of those that were merged."""
        reference = self.pretrained_weights
        finetuned = {
            role: read_encoder(path, reference, role)
            for role, path in candidate.inputs.items()
            if role.startswith("finetuned/")
        }
        if len(finetuned) < 2:
            return None
        merged = weights if isinstance(weights, Mapping) else read_encoder(weights, reference, "the merge")
        return relative_size(reference, finetuned, merged)

    def _outcome(self, found: Sequence[Mapping[str, Any]]) -> str:
        """The best average over the tasks, and what the last model has on the control."""
        rows = [Measured(**each).accuracy for each in found]
        control = rows[-1].get(self.suite.control)
        best = max(fmean(v for name, v in row.items() if name != self.suite.control) for row in rows)
        return f"{best:.1f}%" + ("" if control is None else f", control {control:.1f}%")


def _files(sources: Mapping[str, TaskSource], what: str | None) -> dict[str, Path]:
    """The files behind some sources by role; a grid's candidates may have several measures."""
    found: dict[str, Path] = {}
    for task, source in sources.items():
        assert source.finetuned is not None
        found[f"finetuned/{task}"] = Path(source.finetuned)
        scores = source.importance or source.gram
        if scores is not None:
            found[f"{what}/{task}"] = Path(scores)
    return found
