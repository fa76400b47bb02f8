"""Fusing fine-tuned encoders into one, and telling what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic import (
    FUSION_METHODS,
    MEASURES,
    NORMALIZATIONS,
    SAMPLE_MEASURES,
    Merged,
    merge,
)
from sta_lightning.arithmetic.checks import check_share
from sta_lightning.errors import StaError, listed
from sta_lightning.modules.evaluation import refuse_difference, task_name
from sta_lightning.modules.merged import DType, MergedEvaluation, check_choice, torch_dtype
from sta_lightning.modules.parts import read_encoder
from sta_lightning.modules.sources import read_importance


@dataclass
class TaskSource:
    """The files of one task that goes into a merge.

    Args:
        finetuned: The fine-tuned encoder's weights.
        importance: The importance that ``sta score`` wrote; nothing where the method or the measure needs none.
        head: The task's head; nothing to make it from the pretrained model.
    """

    finetuned: str
    importance: str | None = None
    head: str | None = None


class MergeModule(MergedEvaluation):
    """Fuse encoders that were fine-tuned on several tasks into one (Eq. 14 to 19), and evaluate it on each of them.

    Each task is evaluated with its own head. Logs ``test/<task>/acc``, ``test/avg_acc``, ``test/control/<name>/acc``, the share
    of entries kept per tensor and task, and the size of the change; see :class:`MultiTaskEvaluation`.

    Args:
        tasks: By task name (or the path of a task's YAML file): the files of that task.
        encoder: ``miniature``, an open_clip architecture such as ``ViT-B-16``, or ``timm/`` and a model's name.
        pretrained: The pretrained weights (a file or a tag of open_clip); nothing for those the package ships.
        image_size: Side of the input in pixels; nothing for the encoder's own.
        method: ``sta`` (the paper's), ``random_mask`` (of the same density), ``average`` or ``task_arithmetic``.
        measure: Importance that ``sta`` goes by: ``lp`` or ``lp+amp`` from the tasks' importance files, ``amp`` (θ²) or
            ``delta-amp`` (δ²), which need none; ``delta-lp`` from files made with the task vector as direction.
        p: Quantile of the mask from 0 (all but the smallest of the N tasks' values) to 1 (nothing); the paper's is 0.7.
        scale: Coefficient λ of ``task_arithmetic``, 0.4 by default; the other methods have none.
        normalize: Importance is scaled to 0..1 per ``tensor`` (the paper), per ``block``, over the whole ``model``, or not
            (``none``).
        seed: Of ``random_mask``.
        control_head: Head file of the datamodule's control; nothing to make it.
        dtype: Type of the merged weights; nothing for that of the pretrained encoder, float32.

    Raises:
        StaError: An argument is unknown or out of range; when merging, a source is missing or does not fit.
    """

    def __init__(
        self,
        tasks: dict[str, TaskSource],
        encoder: str = "miniature",
        pretrained: str | None = None,
        image_size: int | None = None,
        method: str = "sta",
        measure: str = "lp",
        p: float = 0.7,
        scale: float | None = None,
        normalize: str = "tensor",
        seed: int = 0,
        control_head: str | None = None,
        dtype: DType | None = None,
    ) -> None:
        sources = {
            task_name(spec): s if isinstance(s, TaskSource) else TaskSource(**s) for spec, s in tasks.items()
        }
        super().__init__(
            encoder,
            pretrained,
            heads={name: source.head for name, source in sources.items() if source.head is not None},
            image_size=image_size,
        )
        check_choice("method", method, FUSION_METHODS)
        check_choice("measure", measure, MEASURES)
        check_choice("normalize", normalize, NORMALIZATIONS)
        check_share(p)
        torch_dtype(dtype)
        if len(sources) != len(tasks):
            raise StaError(f"Two of the tasks {listed(tasks)} are the same task; each can be merged once.")
        if scale is not None and FUSION_METHODS[method].default_scale is None:
            raise StaError(
                f"Method {method!r} has no coefficient, but scale={scale} is given; leave it out, or use task_arithmetic."
            )
        self.tasks = sources
        self._control_head = control_head
        self._method, self._measure, self._p, self._scale = method, measure, p, scale
        self._normalize, self._seed, self._asked_dtype = normalize, seed, dtype

    @override
    def check_tasks(self, names: list[str]) -> None:
        refuse_difference(list(self.tasks), names, "the merge is made of")
        if self._control_head is not None and self.control is not None:
            self._head_files[self.control] = self._control_head

    @override
    def compute(self) -> Merged:
        pretrained = self.original().state_dict()
        finetuned: dict[str, dict[str, Tensor]] = {}
        importance: dict[str, dict[str, Tensor]] = {}
        for name, source in self.tasks.items():
            finetuned[name] = read_encoder(source.finetuned, pretrained, f"task {name!r}")
            if FUSION_METHODS[self._method].needs_importance:
                importance[name] = read_importance(
                    name,
                    source.importance,
                    measure=self._measure,
                    finetuned=finetuned[name],
                    pretrained=pretrained,
                )
        return merge(
            self._method,
            pretrained,
            finetuned,
            importance or None,
            p=self._p,
            scale=self._scale,
            normalize=self._normalize,
            seed=self._seed,
            dtype=torch_dtype(self._asked_dtype),
        )

    @override
    def origin(self) -> tuple[str, dict[str, Any], dict[str, str | Path]]:
        method = FUSION_METHODS[self._method]
        settings: dict[str, Any] = {
            "method": self._method,
            "tasks": list(self.tasks),
            "encoder": self._encoder_name,
            "image_size": self._image_size,
        }
        if method.uses_p:
            settings["p"] = self._p
        if method.needs_importance:
            settings |= {"measure": self._measure, "normalize": self._normalize}
        if method.default_scale is not None:
            settings["scale"] = method.default_scale if self._scale is None else self._scale
        if self._method == "random_mask":
            settings["seed"] = self._seed
        sources: dict[str, str | Path] = {}
        for name, source in self.tasks.items():
            sources[f"finetuned/{name}"] = source.finetuned
            if method.needs_importance and source.importance is not None and self._measure in SAMPLE_MEASURES:
                sources[f"importance/{name}"] = source.importance
        return f"fused:{self._method}", settings, sources
