"""The settings of ``sta merge`` and ``sta forget`` that say what is made, without those that say how it is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sta_lightning.arithmetic import (
    FORGET_METHODS,
    FUSION_METHODS,
    Dare,
    make_method,
    torch_device,
    torch_dtype,
)
from sta_lightning.engine.files import TaskSource
from sta_lightning.engine.heads import TaskHead, heads_of_files
from sta_lightning.engine.job import ForgettingJob, FusionJob
from sta_lightning.engine.vectors import check_vectors
from sta_lightning.errors import StaError

DType = Literal["float32", "float16", "bfloat16"]


@dataclass
class FusionOptions:
    """What is fused, and how; see :class:`sta_lightning.modules.MergeModule`.

    Args:
        tasks: By task name: the files of that task.
        encoder: ``miniature``, an open_clip architecture such as ``ViT-B-16``, or ``timm/`` and a
            model's name.
        pretrained: The pretrained weights (a file or a tag of open_clip); nothing for those the
            package ships.
        image_size: Side of the input in pixels; nothing for the encoder's own.
        method: ``sta`` (the paper's) or another of ``sta methods``; one of your own as
            ``package.module.Name`` or ``file.py:name``.
        settings: Further settings of the method by name, as ``sta methods NAME`` tells them:
            ``{keep: 0.2}``.
        dare: Share of every task vector's entries that is dropped at random before they are merged,
            the rest rescaled (DARE); nothing for none.
        dare_rescale: Whether the rest is rescaled by 1 / (1 - ``dare``).
        measure: Importance that ``sta`` goes by; ``file`` takes any importance file as it is.
        p: Quantile of the mask from 0 to 1; the paper's is 0.7.
        scale: The method's coefficient, if it has one (task arithmetic's λ); nothing for its
            default.
        normalize: Importance is scaled to 0..1 per ``tensor``, ``block``, ``model``, or not
            (``none``).
        seed: Of what is drawn at random: ``random_mask``, ``dare``.
        control_head: Head file of the control; only an evaluation reads it.
        base: Model that method ``vectors`` adds to, a file; nothing for the pretrained one.
        vectors: Folder for what each task contributes, its masked task vector, as a file of its
            own; nothing for none.
        vectors_dtype: Type of the values in those; nothing for float32, which keeps every bit.
        dtype: Type of the merged weights; nothing for float32.
        device: Where the arithmetic is done: ``cpu`` or a GPU such as ``cuda``; the result is the
            same.
        heads: Whether the tasks' heads go into the file too, so that ``sta predict --model`` needs
            nothing else.
    """

    tasks: dict[str, TaskSource]
    encoder: str = "miniature"
    pretrained: str | None = None
    image_size: int | None = None
    method: str = "sta"
    settings: dict[str, Any] | None = None
    dare: float | None = None
    dare_rescale: bool = True
    measure: str = "lp"
    p: float = 0.7
    scale: float | None = None
    normalize: str = "tensor"
    seed: int = 0
    control_head: str | None = None
    base: str | None = None
    vectors: str | None = None
    vectors_dtype: DType | None = None
    dtype: DType | None = None
    device: str = "cpu"
    heads: bool = False

    def job(self) -> FusionJob:
        """The merge that these settings ask for.

        Raises:
            StaError: a setting is unknown or out of range.
        """
        if not self.tasks:
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
            self.tasks,
            self.method,
            method,
            base=self.base,
            measure=self.measure,
            dare=None if self.dare is None else Dare(self.dare, self.dare_rescale, self.seed),
            dtype=torch_dtype(self.dtype),
            device=torch_device(self.device),
        )
        if self.vectors is not None:
            check_vectors(job)
        return job

    def task_heads(self) -> dict[str, TaskHead]:
        """The heads that go into the file, from the tasks' head files; none if they are not asked for.

        Raises:
            StaError: a task has no head file.
        """
        return heads_of_files(self.tasks) if self.heads else {}


@dataclass
class ForgettingOptions:
    """What forgets what, and how; see :class:`sta_lightning.modules.ForgetModule`.

    Args:
        target: The task to forget.
        finetuned: Weights of the encoder that was fine-tuned on it; nothing for method ``vector``.
        importance: The importance that ``sta score`` wrote; nothing where the method or the measure
            needs none.
        control: The task that must not be hurt; only an evaluation reads it.
        model: Weights of the model that shall forget: the pretrained one if not given, or a merged
            or fine-tuned one.
        encoder: ``miniature``, an open_clip architecture such as ``ViT-B-16``, or ``timm/`` and a
            model's name.
        pretrained: The pretrained weights (a file or a tag of open_clip); nothing for those the
            package ships.
        image_size: Side of the input in pixels; nothing for the encoder's own.
        method: ``sta`` (the paper's) or another of ``sta methods``; one of your own as
            ``package.module.Name`` or ``file.py:name``.
        settings: Further settings of the method by name, as ``sta methods NAME`` tells them.
        more: Weights of further models fine-tuned on the task, for a method that takes several
            (``negmerge``).
        measure: Importance that ``sta`` goes by; ``file`` takes any importance file as it is.
        p: Quantile of each tensor's entries from 0 to 1; those above it are taken out. The paper's
            is 0.7.
        scale: The method's coefficient, if it has one (task arithmetic's γ); nothing for its
            default.
        seed: Of ``random_mask``.
        target_head: Head file of the target; only an evaluation reads it.
        control_head: Head file of the control; only an evaluation reads it.
        vector: For method ``vector``: the task's masked task vector, which an earlier ``sta merge``
            wrote.
        dtype: Type of the weights made; nothing for that of the model that forgets.
        device: Where the arithmetic is done: ``cpu`` or a GPU such as ``cuda``; the result is the
            same.
    """

    target: str
    finetuned: str | None = None
    importance: str | None = None
    control: str | None = None
    model: str | None = None
    encoder: str = "miniature"
    pretrained: str | None = None
    image_size: int | None = None
    method: str = "sta"
    settings: dict[str, Any] | None = None
    more: list[str] | None = None
    measure: str = "lp"
    p: float = 0.7
    scale: float | None = None
    seed: int = 0
    target_head: str | None = None
    control_head: str | None = None
    vector: str | None = None
    dtype: DType | None = None
    device: str = "cpu"

    def job(self) -> ForgettingJob:
        """The forgetting that these settings ask for.

        Raises:
            StaError: a setting is unknown or out of range.
        """
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
