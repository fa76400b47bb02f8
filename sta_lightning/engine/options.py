"""The settings of a merge and a forgetting, once for command line, modules and Python."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from typing_extensions import override

from sta_lightning.engine.defaults import BY_IMAGES, DATA_FREE, DATA_FREE_FORGETTING
from sta_lightning.engine.metrics import MetricName
from sta_lightning.engine.sources import TaskSource, check_output, check_there, task_sources
from sta_lightning.errors import StaError, listed

# torch takes seconds to import: what a command line asks for is known, and refused, before. In
# quotes, and not all postponed: jsonargparse would import these to resolve those.
if TYPE_CHECKING:
    from sta_lightning.arithmetic import MergeMethod
    from sta_lightning.arithmetic.run import Kept
    from sta_lightning.arithmetic.workers import Processes
    from sta_lightning.engine.forgetting import ForgettingJob
    from sta_lightning.engine.fusion import FusionJob
    from sta_lightning.engine.heads import TaskHead
    from sta_lightning.engine.job import Job
    from sta_lightning.engine.opened import Pretrained

_WEIGHED = ("amp", "delta-amp")
"""The measures that are made of the weights, without a file."""

DType = Literal["float32", "float16", "bfloat16"]
Statistics = Literal["pretrained", "average"]  # those of sta_lightning.arithmetic.states
# Those of sta_lightning.engine.files.
MeasureName = Literal["lp", "amp", "lp+amp", "delta-amp", "delta-lp", "fisher", "file"]


def bytes_of(size: str) -> int:
    """A size such as ``5GB`` or ``500 MB`` in bytes; a StaError if it is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", size, flags=re.IGNORECASE)
    number = float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " ") if found else 0
    if number < 1:
        raise StaError(f"shard_size: '{size}' is no size. Give bytes with KB, MB, GB or TB, such as 5GB.")
    return int(number)


def refuse_by_images(method: str | None, foretell: int | None = None) -> None:
    """Refuse what looks at images where there are none; a StaError says what it needs."""
    if method in BY_IMAGES:
        what, option, instead = f"method '{method}'", f"method={method}", "name another method"
    elif foretell is not None:
        what, option, instead = f"foretell={foretell}", f"foretell={foretell}", "leave foretell out"
    else:
        return
    raise StaError(
        f"{what} looks at training images, and here are none. Let the merge be evaluated, by a configuration with "
        f"images (`sta merge --config sta:merge/miniature --model.{option}`; in Python MergeModule), or {instead}."
    )


class Choice(NamedTuple):
    """The method of a merge, and why it is that."""

    method: str
    reason: str


@dataclass(kw_only=True)
class MergeOptions(ABC):
    """What fusing and forgetting have in common.

    Args:
        encoder: ``miniature``, an open_clip architecture such as ``ViT-B-16``, or ``timm/`` and a
            model's name; ``None`` for what the file ``pretrained`` holds.
        pretrained: The pretrained weights, a file, a folder or a tag of open_clip; ``None`` for
            those that ``encoder`` brings (``miniature``, a repository of the hub).
        image_size: Side of the input in pixels; ``None`` for the encoder's own.
        method: One of ``sta methods``, or one of your own as ``package.module.Name`` or
            ``file.py:name``; ``None`` for ``sta`` (the paper's) if there is the importance that it
            reads, else for one that needs neither data nor a coefficient; ``auto``, in a merge that
            is evaluated, for the one whose predictions on training images, without their labels,
            are nearest to the fine-tuned models', and likewise ``distilled`` and
            ``regmean_plus_plus``.
        settings: Further settings of the method by name, as ``sta methods NAME`` lists them:
            ``{keep: 0.2}``.
        measure: Importance that ``sta`` goes by: ``lp`` or ``lp+amp`` from importance files by
            ``lp``, ``amp`` (θ²) or ``delta-amp`` (δ²), which need none; ``delta-lp`` or ``fisher``
            from files scored by it; ``file`` from any, taken as they are; ``None`` for ``lp``.
        p: Quantile of the mask from 0 to 1; the paper's is 0.7. In a fusion it is that of the
            tasks' values for one entry (0 masks all but the smallest, 1 none); in a forgetting that
            of a tensor's entries, and those above it are taken out.
        scale: The method's coefficient, if it has one (task arithmetic's λ or γ), or coefficients
            by task, ``{cars: 0.6}``, with which the task vectors are multiplied before the method;
            tasks that are not named have the default. ``None`` for that.
        scale_layers: Coefficients by pattern of tensor names, in place of ``scale``: ``{'*.mlp.*':
            0.6}``; the first that fits. A list runs over the depth, from the first block to the
            last: ``{'*': [0.2, 0.6]}``.
        seed: Of what is drawn at random: ``random_mask``, ``dare``.
        control_head: Head file of the control, for an evaluation; ``None`` to make it.
        only: Patterns of tensor names such as ``*.bias``: what is merged; the rest stays that of
            the model that is changed. ``None`` for all.
        skip: Patterns of tensor names: what is not merged.
        resample: Whether position embeddings of another resolution than the pretrained encoder's
            are resampled to its, bicubic; without it they are an error.
        shard_size: Bytes in one weights file of a folder, such as ``500MB``.
        dtype: Type of the weights that are made; ``None`` for that of the model that is changed.
        device: Where the arithmetic is done: ``cpu`` or a GPU such as ``cuda`` (of several
            processes on one machine each takes its own); the result is the same.
        metrics: What an evaluation measures beside accuracies: ``macro`` (mean of the classes'),
            ``top5``, ``per_class``, ``confusion`` (a figure in TensorBoard).
    """

    encoder: str | None = None
    pretrained: str | None = None
    image_size: int | None = None
    method: str | None = None
    settings: dict[str, Any] | None = None
    measure: MeasureName | None = None
    p: float = 0.7
    scale: float | dict[str, float] | None = None
    scale_layers: dict[str, float | list[float]] | None = None
    seed: int = 0
    control_head: str | None = None
    only: list[str] | None = None
    skip: list[str] | None = None
    resample: bool = False
    shard_size: str = "5GB"
    dtype: DType | None = None
    device: str = "cpu"
    metrics: list[MetricName] | None = None

    @property
    def choice(self) -> Choice:
        """The method: as asked, or that which the files allow."""
        if self.method is not None:
            return Choice(self.method, "as asked")
        if self.measure in _WEIGHED:
            return Choice("sta", f"by the measure {self.measure}, which needs no data")
        return self.by_files()

    @abstractmethod
    def by_files(self) -> Choice:
        """The method where none is asked for, by whether there is importance."""

    @abstractmethod
    def read(self) -> dict[str, str | None]:
        """What is read besides the pretrained model: what it is -> its path."""

    @property
    def changed(self) -> str | None:
        """The model that is changed, a path or a tag."""
        return self.pretrained

    def check_files(self, output: str | Path) -> None:
        """Refuse files that are missing, and what cannot be written, without opening any.

        Raises:
            StaError: names the first, or says that there is no pretrained model.
        """
        check_output(output, self.changed)
        bytes_of(self.shard_size)
        if self.pretrained is None and self.encoder is None:
            raise StaError(
                "the pretrained model that the others were fine-tuned from must be given (pretrained); the package's own is "
                "asked for as encoder=miniature."
            )
        if self.pretrained is not None and self.encoder is None:
            check_there(self.pretrained, "the pretrained model")
        for what, path in self.read().items():
            if path is not None:
                check_there(path, what)

    @abstractmethod
    def job(self) -> "Job":
        """What these settings ask for.

        Raises:
            StaError: a setting is unknown or out of range.
        """

    def _request(
        self, methods: "Mapping[str, type[MergeMethod]]", given: "MergeMethod | None" = None, **common: Any
    ) -> "tuple[str, MergeMethod, dict[str, Any]]":
        """A job's method by name and made, if it is not given, and what every job is told."""
        from sta_lightning.arithmetic import torch_device, torch_dtype
        from sta_lightning.arithmetic.coefficients import Coefficients, method_with
        from sta_lightning.engine.part import Part

        name, common = self.choice.method, {"p": self.p, "seed": self.seed, **common}
        scales = self.scale, self.scale_layers
        method, coefficients = (
            method_with(name, methods, *scales, self.settings, **common)
            if given is None
            else (given, Coefficients())
        )
        request = {
            "measure": self.measure or "lp",
            "dtype": torch_dtype(self.dtype),
            "device": torch_device(self.device),
            "part": Part(tuple(self.only or ()), tuple(self.skip or ()), self.resample),
            "coefficients": coefficients,
        }
        return name, method, request

    def task_heads(self) -> "dict[str, TaskHead]":
        """The heads that go into the written file, by task.

        Raises:
            StaError: heads are asked for, but a task has no head file.
        """
        return {}

    def write(
        self,
        pretrained: "Pretrained",
        output: str | Path,
        processes: "Processes | None" = None,
        heads: "Mapping[str, TaskHead] | None" = None,
    ) -> "Kept":
        """Write all that is asked for: see :meth:`sta_lightning.engine.job.Job.write`."""
        return self.job().write(pretrained, output, processes, heads, bytes_of(self.shard_size))


@dataclass
class FusionOptions(MergeOptions):
    """What is fused, and how.

    Args:
        tasks: By task name (or the path of a task's YAML file): the files of that task, or the path
            of its fine-tuned encoder alone. Or the names alone, where ``files`` says where these
            lie.
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
        foretell: Training images of each task, looked at without their labels, on which a merge
            that is evaluated foretells itself: how near it is to the fine-tuned models by its
            predictions, and by its layers' outputs where ``gram`` is given; ``None`` not to.
    """

    tasks: dict[str, TaskSource | Path] | list[str]
    files: TaskSource = field(default_factory=TaskSource)
    dare: float | None = None
    dare_rescale: bool = True
    normalize: str = "tensor"
    statistics: Statistics = "pretrained"
    base: str | None = None
    vectors: str | None = None
    vectors_dtype: DType | None = None
    heads: bool = False
    foretell: int | None = None
    about: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    """What the metadata says besides: how a method that looks at images came to this merge."""
    given: Any = field(default=None, init=False, repr=False)
    """What such a method has made, a :class:`~sta_lightning.arithmetic.given.Given`."""

    @property
    def sources(self) -> dict[str, TaskSource]:
        """Each task's files; a StaError if a task is named twice."""
        return task_sources(self.tasks, self.files)

    @property
    @override
    def changed(self) -> str | None:
        return self.base or self.pretrained

    @override
    def read(self) -> dict[str, str | None]:
        found = {"the model that is added to": self.base}
        for task, files in self.sources.items():
            found[f"task '{task}'"] = files.finetuned or files.vector
            found[f"importance of task '{task}'"] = files.importance
            found[f"Gram matrices of task '{task}'"] = files.gram
        return found

    @override
    def by_files(self) -> Choice:
        without = [task for task, files in self.sources.items() if files.importance is None]
        if self.measure is not None or not without:
            return Choice("sta", "every task has its importance")
        lacking = f"no importance lies beside {listed(without, 3)}"
        return Choice(DATA_FREE, f"{lacking}; the best here that needs neither data nor a coefficient")

    @override
    def job(self) -> "FusionJob":
        from sta_lightning.arithmetic import FUSION_METHODS, Dare
        from sta_lightning.engine.fusion import FusionJob
        from sta_lightning.engine.vectors import check_vectors

        if not self.sources:
            raise StaError("there is nothing to merge: name the tasks' files under model.tasks.")
        refuse_by_images(self.choice.method if self.given is None else None, self.foretell)
        name, method, request = self._request(FUSION_METHODS, self.given, normalize=self.normalize)
        dare = None if self.dare is None else Dare(self.dare, self.dare_rescale, self.seed)
        request |= {"base": self.base, "dare": dare, "statistics": self.statistics}
        job = FusionJob(self.sources, name, method, **request)
        if self.vectors is not None:
            check_vectors(job)
        job.about = self.about
        return job

    @override
    def task_heads(self) -> "dict[str, TaskHead]":
        from sta_lightning.engine.heads import heads_of_files

        return heads_of_files(self.sources) if self.heads else {}

    @override
    def write(
        self,
        pretrained: "Pretrained",
        output: str | Path,
        processes: "Processes | None" = None,
        heads: "Mapping[str, TaskHead] | None" = None,
    ) -> "Kept":
        from sta_lightning.arithmetic import torch_dtype
        from sta_lightning.engine.vectors import write_vectors

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
        gram: The Gram matrices that ``sta score --measure=gram`` wrote of the target, for a method
            that reads them; ``None`` for those beside ``finetuned``.
        control_gram: Likewise of the control's training images, on any of the models.
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
    gram: str | None = None
    control_gram: str | None = None
    control: str | None = None
    model: str | None = None
    more: list[str] | None = None
    target_head: str | None = None
    vector: str | None = None

    @property
    def source(self) -> TaskSource:
        """The files of what is forgotten."""
        files = TaskSource(self.finetuned, self.importance, self.target_head, self.vector, self.gram)
        return task_sources({self.target: files}, TaskSource())[self.target]

    @property
    @override
    def changed(self) -> str | None:
        return self.model or self.pretrained

    @override
    def read(self) -> dict[str, str | None]:
        more = {f"task '{self.target}' ({number})": path for number, path in enumerate(self.more or (), 2)}
        return {
            "the model that shall forget": self.model,
            f"task '{self.target}'": self.finetuned or self.vector,
            f"importance of task '{self.target}'": self.importance,
            f"Gram matrices of task '{self.target}'": self.gram,
            "Gram matrices of the control": self.control_gram,
            **more,
        }

    @override
    def by_files(self) -> Choice:
        if self.measure is not None or self.source.importance is not None:
            return Choice("sta", "the task has its importance")
        return Choice(DATA_FREE_FORGETTING, "no importance lies beside the fine-tuned model")

    @override
    def job(self) -> "ForgettingJob":
        from sta_lightning.arithmetic import FORGET_METHODS
        from sta_lightning.engine.forgetting import ForgettingJob

        name, method, request = self._request(FORGET_METHODS)
        request |= {"model": self.model, "more": self.more or (), "control_gram": self.control_gram}
        return ForgettingJob(self.target, self.source, name, method, **request)
