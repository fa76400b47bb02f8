"""The settings of a merge and a forgetting, once for command line, modules and Python."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from sta_lightning.arithmetic import (
    FORGET_METHODS,
    FUSION_METHODS,
    Dare,
    make_method,
    torch_device,
    torch_dtype,
)
from sta_lightning.arithmetic.run import Kept
from sta_lightning.arithmetic.states import Statistics
from sta_lightning.arithmetic.workers import Processes
from sta_lightning.engine.files import TaskSource, task_sources
from sta_lightning.engine.forgetting import ForgettingJob
from sta_lightning.engine.fusion import FusionJob
from sta_lightning.engine.heads import TaskHead, heads_of_files
from sta_lightning.engine.job import Job, Pretrained
from sta_lightning.engine.vectors import check_vectors, write_vectors
from sta_lightning.errors import StaError

DType = Literal["float32", "float16", "bfloat16"]


@dataclass(kw_only=True)
class MergeOptions(ABC):
    """What fusing and forgetting have in common.

    Args:
        encoder: ``miniature``, an open_clip architecture such as ``ViT-B-16``, or ``timm/`` and a
            model's name.
        pretrained: The pretrained weights (a file or a tag of open_clip); ``None`` for those the
            package ships.
        image_size: Side of the input in pixels; ``None`` for the encoder's own.
        method: ``sta`` (the paper's) or another of ``sta methods``; one of your own as
            ``package.module.Name`` or ``file.py:name``.
        settings: Further settings of the method by name, as ``sta methods NAME`` lists them:
            ``{keep: 0.2}``.
        measure: Importance that ``sta`` goes by: ``lp`` or ``lp+amp`` from importance files by
            ``lp``, ``amp`` (θ²) or ``delta-amp`` (δ²), which need none; ``delta-lp`` or ``fisher``
            from files scored by it; ``file`` from any, taken as they are.
        p: Quantile of the mask from 0 to 1; the paper's is 0.7. In a fusion it is that of the
            tasks' values for one entry (0 masks all but the smallest, 1 none); in a forgetting that
            of a tensor's entries, and those above it are taken out.
        scale: The method's coefficient, if it has one (task arithmetic's λ or γ); ``None`` for its
            default.
        seed: Of what is drawn at random: ``random_mask``, ``dare``.
        control_head: Head file of the control, for an evaluation; ``None`` to make it.
        dtype: Type of the weights that are made; ``None`` for float32, or in a forgetting for that
            of ``model`` if one is given.
        device: Where the arithmetic is done: ``cpu`` or a GPU such as ``cuda``; the result is the
            same.
    """

    encoder: str = "miniature"
    pretrained: str | None = None
    image_size: int | None = None
    method: str = "sta"
    settings: dict[str, Any] | None = None
    measure: str = "lp"
    p: float = 0.7
    scale: float | None = None
    seed: int = 0
    control_head: str | None = None
    dtype: DType | None = None
    device: str = "cpu"

    @abstractmethod
    def job(self) -> Job:
        """What these settings ask for.

        Raises:
            StaError: a setting is unknown or out of range.
        """

    def task_heads(self) -> dict[str, TaskHead]:
        """The heads that go into the written file, by task.

        Raises:
            StaError: heads are asked for, but a task has no head file.
        """
        return {}

    def write(
        self,
        pretrained: Pretrained,
        output: str | Path,
        processes: Processes | None = None,
        heads: Mapping[str, TaskHead] | None = None,
    ) -> Kept:
        """Write all that is asked for; see :meth:`Job.write` for arguments, result and errors."""
        return self.job().write(pretrained, output, processes, heads)


@dataclass
class FusionOptions(MergeOptions):
    """What is fused, and how.

    Args:
        tasks: By task name (or the path of a task's YAML file): the files of that task. Or the
            names alone, where ``files`` says where these lie.
        files: Files of every task, where ``tasks`` does not say others; ``{task}`` in a path stands
            for the task's name.
        dare: Share of every task vector's entries that is dropped at random before they are merged,
            the rest rescaled (DARE); ``None`` to drop none.
        dare_rescale: Whether the rest is rescaled by 1 / (1 - ``dare``).
        normalize: Importance is scaled to 0..1 per ``tensor`` (the paper), per ``block``, over the
            whole ``model``, or not (``none``).
        statistics: Running statistics of normalisation layers, which no method extrapolates:
            ``pretrained``, or the ``average`` of the tasks'.
        base: Model that method ``vectors`` adds to, a file; ``None`` for the pretrained one.
        vectors: Folder for what each task contributes, its masked task vector, as a file of its
            own; ``None`` to write none.
        vectors_dtype: Type of the values in those; ``None`` for float32, which keeps every bit.
        heads: Whether the tasks' heads go into the file too, so that ``sta predict --model`` needs
            nothing else.
    """

    tasks: dict[str, TaskSource] | list[str]
    files: TaskSource = field(default_factory=TaskSource)
    dare: float | None = None
    dare_rescale: bool = True
    normalize: str = "tensor"
    statistics: Statistics = "pretrained"
    base: str | None = None
    vectors: str | None = None
    vectors_dtype: DType | None = None
    heads: bool = False

    @property
    def sources(self) -> dict[str, TaskSource]:
        """Each task's files; a StaError if a task is named twice."""
        return task_sources(self.tasks, self.files)

    @override
    def job(self) -> FusionJob:
        if not self.sources:
            raise StaError("there is nothing to merge: name the tasks' files under model.tasks.")
        method = make_method(
            self.method,
            FUSION_METHODS,
            scale=self.scale,
            settings=self.settings,
            p=self.p,
            normalize=self.normalize,
            seed=self.seed,
        )
        job = FusionJob(
            self.sources,
            self.method,
            method,
            base=self.base,
            measure=self.measure,
            dare=None if self.dare is None else Dare(self.dare, self.dare_rescale, self.seed),
            statistics=self.statistics,
            dtype=torch_dtype(self.dtype),
            device=torch_device(self.device),
        )
        if self.vectors is not None:
            check_vectors(job)
        return job

    @override
    def task_heads(self) -> dict[str, TaskHead]:
        return heads_of_files(self.sources) if self.heads else {}

    @override
    def write(
        self,
        pretrained: Pretrained,
        output: str | Path,
        processes: Processes | None = None,
        heads: Mapping[str, TaskHead] | None = None,
    ) -> Kept:
        kept = super().write(pretrained, output, processes, heads)
        if self.vectors is not None and (processes is None or processes.rank == 0):
            write_vectors(self.job(), pretrained, self.vectors, torch_dtype(self.vectors_dtype))
        return kept


@dataclass
class ForgettingOptions(MergeOptions):
    """What forgets what, and how.

    Args:
        target: The task to forget, or the path of its YAML file.
        finetuned: Weights of the encoder that was fine-tuned on it; ``None`` for method ``vector``.
        importance: The importance that ``sta score`` wrote; ``None`` where the method or the
            measure needs none.
        control: The task that must not be hurt, or the path of its YAML file, for an evaluation;
            ``None`` to take the datamodule's.
        model: Weights of the model that shall forget, a merged or fine-tuned one; ``None`` for the
            pretrained one.
        more: Weights of further models fine-tuned on the task, for a method that takes several
            (``negmerge``).
        target_head: Head file of the target, for an evaluation; ``None`` to make it from the
            pretrained model.
        vector: For method ``vector``: the task's masked task vector, which an earlier ``sta merge``
            wrote.
    """

    target: str
    finetuned: str | None = None
    importance: str | None = None
    control: str | None = None
    model: str | None = None
    more: list[str] | None = None
    target_head: str | None = None
    vector: str | None = None

    @override
    def job(self) -> ForgettingJob:
        method = make_method(
            self.method, FORGET_METHODS, scale=self.scale, settings=self.settings, p=self.p, seed=self.seed
        )
        return ForgettingJob(
            self.target,
            TaskSource(self.finetuned, self.importance, self.target_head, self.vector),
            self.method,
            method,
            model=self.model,
            more=self.more or (),
            measure=self.measure,
            dtype=torch_dtype(self.dtype),
            device=torch_device(self.device),
        )
