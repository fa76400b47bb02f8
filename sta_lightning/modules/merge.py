"""Fusing fine-tuned encoders into one, and telling what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import override

from sta_lightning.arithmetic import torch_dtype
from sta_lightning.engine import DType, FusionJob, FusionOptions, TaskHead, TaskSource, write_vectors
from sta_lightning.errors import StaError, listed
from sta_lightning.modules.evaluation import refuse_difference, task_name
from sta_lightning.modules.merged import MergedEvaluation
from sta_lightning.modules.parts import head_for
from sta_lightning.tasks import get_task


class MergeModule(MergedEvaluation):
    """Fuse encoders that were fine-tuned on several tasks into one (Eq. 14 to 19), and evaluate it on each of them.

    Each task is evaluated with its own head. Logs ``test/<task>/acc``, ``test/avg_acc``,
    ``test/control/<name>/acc``, the share of entries kept per tensor and task, and the size of the
    change; see :class:`MultiTaskEvaluation`.

    Args:
        tasks: By task name (or the path of a task's YAML file): the files of that task.
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
        measure: Importance that ``sta`` goes by: ``lp`` or ``lp+amp`` from the tasks' importance
            files, ``amp`` (θ²) or ``delta-amp`` (δ²), which need none; ``delta-lp`` or ``fisher``
            from files scored by it; ``file`` from any, taken as they are.
        p: Quantile of the mask from 0 (all but the smallest of the N tasks' values) to 1 (nothing);
            the paper's is 0.7.
        scale: The method's coefficient, if it has one (task arithmetic's λ); nothing for its
            default.
        normalize: Importance is scaled to 0..1 per ``tensor`` (the paper), per ``block``, over the
            whole ``model``, or not (``none``).
        seed: Of what is drawn at random: ``random_mask``, ``dare``.
        control_head: Head file of the datamodule's control; nothing to make it.
        base: Model that method ``vectors`` adds to, a file; nothing for the pretrained one.
        vectors: Folder for what each task contributes, its masked task vector, as a file of its
            own; nothing for none.
        vectors_dtype: Type of the values in those; nothing for float32, which keeps every bit.
        dtype: Type of the merged weights; nothing for that of the pretrained encoder, float32.
        device: Where the arithmetic is done: ``cpu`` or a GPU such as ``cuda``; the result is the
            same.
        heads: Whether the tasks' heads go into the file too, so that ``sta predict --model`` needs
            nothing else.

    Raises:
        StaError: An argument is unknown or out of range; when merging, a source is missing or does
            not fit.
    """

    def __init__(
        self,
        tasks: dict[str, TaskSource],
        encoder: str = "miniature",
        pretrained: str | None = None,
        image_size: int | None = None,
        method: str = "sta",
        settings: dict[str, Any] | None = None,
        dare: float | None = None,
        dare_rescale: bool = True,
        measure: str = "lp",
        p: float = 0.7,
        scale: float | None = None,
        normalize: str = "tensor",
        seed: int = 0,
        control_head: str | None = None,
        base: str | None = None,
        vectors: str | None = None,
        vectors_dtype: DType | None = None,
        dtype: DType | None = None,
        device: str = "cpu",
        heads: bool = False,
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
        if len(sources) != len(tasks):
            raise StaError(f"Two of the tasks {listed(tasks)} are the same task; each can be merged once.")
        options = FusionOptions(
            sources,
            method=method,
            settings=settings,
            dare=dare,
            dare_rescale=dare_rescale,
            measure=measure,
            p=p,
            scale=scale,
            normalize=normalize,
            seed=seed,
            base=base,
            vectors=vectors,
            vectors_dtype=vectors_dtype,
            dtype=dtype,
            device=device,
        )
        self._job = options.job()
        self._vectors = None if vectors is None else (vectors, torch_dtype(vectors_dtype))
        self.tasks = sources
        # By name: a task of one's own is found again by its file only.
        self._specs = {task_name(spec): spec for spec in tasks}
        self._with_heads = heads
        self._control_head = control_head

    @override
    def save(self, path: str | Path) -> Path:
        """Write the merged encoder, and the masked task vectors if they are asked for; see the base class."""
        written = super().save(path)
        if self._vectors is not None:
            write_vectors(self.job, self._original_for_merge(), *self._vectors)
        return written

    @override
    def task_heads(self) -> dict[str, TaskHead]:
        """The tasks' heads, from their files or made as for an evaluation, if they are asked for."""
        if not self._with_heads:
            return {}
        found: dict[str, TaskHead] = {}
        for name, source in self.tasks.items():
            task = get_task(self._specs[name])
            head = head_for(
                task,
                encoder_name=self._encoder_name,
                pretrained=self._pretrained,
                encoder=self.original(),
                file=source.head,
            )
            found[name] = head.for_file(task.class_names)
        return found

    @property
    @override
    def job(self) -> FusionJob:
        return self._job

    @override
    def check_tasks(self, names: list[str]) -> None:
        refuse_difference(list(self.tasks), names, "the merge is made of")
        if self._control_head is not None and self.control is not None:
            self._head_files[self.control] = self._control_head
