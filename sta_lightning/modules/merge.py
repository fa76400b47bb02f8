from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.callbacks.progress import StepLines
from sta_lightning.callbacks.scorable import made_once
from sta_lightning.encoders import ClassificationHead
from sta_lightning.engine import FusionOptions, Pretrained, TaskHead, TaskSource
from sta_lightning.engine.defaults import BY_IMAGES, DATA_FREE, DISTILLED
from sta_lightning.engine.options import refuse_by_images
from sta_lightning.errors import StaError, listed
from sta_lightning.modules.by_images import Surroundings, check_images, checked_settings, resolved
from sta_lightning.modules.evaluation import members_of, module_key, refuse_difference
from sta_lightning.modules.foretelling import layer_errors
from sta_lightning.modules.judge import Judge
from sta_lightning.modules.merged import MergedEvaluation
from sta_lightning.tasks import get_task


class MergeModule(MergedEvaluation):
    """Fuse encoders that were fine-tuned on several tasks (Eq. 14 to 19), and evaluate the result.

    Each task is evaluated with its own head. Logs ``test/<task>/acc``, ``test/avg_acc``,
    ``test/control/<name>/acc``, the share of entries kept per tensor and task, and the size of the
    change; see MultiTaskEvaluation.

    Three methods look at training images of every task, without their labels, as an evaluation
    begins, ``samples`` of each: ``auto`` merges by many methods (``candidates``) and takes the one
    whose predictions are nearest to the fine-tuned models', ``distilled`` fits coefficients by rows
    to these predictions, and ``regmean_plus_plus`` is RegMean on the inputs that the merged blocks
    give. With ``foretell`` any merge says of itself, from such
    images and from Gram matrices, how near it is to the fine-tuned models: the attribute
    ``foretold``, which loggers get too as ``foretold/…``.

    Args:
        tasks: By task name (or the path of a task's YAML file): the files of that task, or the path
            of its fine-tuned encoder alone. Or the names alone, where ``files`` says where these
            lie.
        options: See :class:`~sta_lightning.engine.FusionOptions`.

    Attributes:
        foretold: ``None`` before an evaluation, and without ``foretell``; else the ``samples``,
            ``tasks`` -> divergence and agreement
            (:class:`~sta_lightning.modules.judge.Foretold`), and ``layers`` -> task -> error
            (:func:`~sta_lightning.modules.foretelling.layer_errors`).

    Raises:
        StaError: An argument is unknown or out of range; when merging, a source is missing or does
            not fit.
    """

    def __init__(self, tasks: dict[str, TaskSource | Path] | list[str], **options: Any) -> None:
        # By name: a task of one's own is found again by its file only.
        self._specs = {get_task(spec).name: spec for spec in tasks}
        if len(self._specs) != len(tasks):
            raise StaError(f"Two of the tasks {listed(tasks)} are the same task; each can be merged once.")
        names = list(self._specs)
        named = dict(zip(names, tasks.values(), strict=True)) if isinstance(tasks, dict) else names
        made = FusionOptions(named, **options)
        self.tasks = made.sources
        heads = {name: files.head for name, files in self.tasks.items() if files.head is not None}
        self._by_images: FusionOptions | None = None
        self.foretold: dict[str, Any] | None = None
        # A merge of files has no images to foretell from.
        self._foretell, made.foretell = made.foretell, None
        if self._foretell is not None:
            check_images("foretell", self._foretell, self.tasks, "foretell")
        if made.method in BY_IMAGES:
            checked_settings(made)
            self._by_images = made
            # Until the images are there; nothing is merged before.
            made = replace(made, method=DATA_FREE, settings=None)
        super().__init__(made, heads)
        if self._by_images is not None:
            self.hparams.update(method=self._by_images.method, settings=self._by_images.settings)
        self.hparams.update(foretell=self._foretell)
        self._with_heads = made.heads

    @property
    def about(self) -> Mapping[str, Any]:
        """What a method that looks at images has found: for ``auto`` the ``ranking``."""
        return cast(FusionOptions, self.options).about

    @override
    def load(self) -> None:
        if self._by_images is not None:
            self._resolve(self._by_images)
            self._by_images = None
        super().load()
        if self._foretell is not None and self.foretold is None:
            self._judge(self._foretell)

    def _resolve(self, asked: FusionOptions) -> None:
        """Turn a method by images into a merge of files; the first process does, for all."""

        def found() -> FusionOptions:
            images = self._training_images(f"method '{asked.method}'", checked_settings(asked)["samples"])
            with MergedEvaluation._pretrained_for_merge(self) as pretrained:
                around = Surroundings(
                    *(pretrained, deepcopy(self.original()), self._heads(), images),
                    *(self._specs, self._place(), [StepLines(DISTILLED)]),
                )
                return resolved(asked, around)

        self.options = made_once(self.trainer, found)
        self.job = self.options.job()

    def _judge(self, samples: int) -> None:
        """Foretell the merge that is evaluated; the first process does, for all."""
        weights = self.merge().weights

        def found() -> dict[str, Any]:
            original = self.original()
            finetuned = {task: str(source.finetuned) for task, source in self.tasks.items()}
            images = self._training_images("foretell", samples)
            judge = Judge(original, finetuned, self._heads(), images, self._place())
            layers = layer_errors(original.state_dict(), weights, self.tasks)
            return {"samples": samples, "tasks": judge.foretell(weights).plain(), "layers": layers}

        self.foretold = made_once(self.trainer, found)

    def _training_images(self, who: str, count: int) -> dict[str, Tensor]:
        """By task, ``[count, 3, S, S]``: those that ``sta score`` draws by the same seed."""
        members = members_of(cast(Any, self.trainer).datamodule)
        if missing := [task for task in self.tasks if task not in members]:
            raise StaError(
                f"{who} looks at training images of every task, and the datamodule brings none of {listed(missing)}. Give it "
                "all tasks of the merge, or leave it out."
            )
        seed = self.options.seed
        drawn = {task: members[task].scoring_samples(count, seed) for task in self.tasks}
        return {task: members[task].dataset("train").batch(chosen) for task, chosen in drawn.items()}

    def _heads(self) -> dict[str, ClassificationHead]:
        return {task: cast(ClassificationHead, self.heads[module_key(task)]) for task in self.tasks}

    def _place(self) -> torch.device:
        return cast(torch.device, cast(Any, self.trainer).strategy.root_device)

    @override
    @contextmanager
    def _pretrained_for_merge(self) -> Iterator[Pretrained]:
        if self._by_images is not None:
            refuse_by_images(self._by_images.method)
        with super()._pretrained_for_merge() as pretrained:
            yield pretrained

    @override
    def describe(self) -> dict[str, Any]:
        """Return the settings; what was found by images is in the written file alone."""
        return {name: value for name, value in super().describe().items() if name not in self.about}

    @override
    def task_heads(self) -> dict[str, TaskHead]:
        """The tasks' heads, from files or made as for an evaluation, if they are asked for."""
        if not self._with_heads:
            return {}
        tasks = {name: get_task(self._specs[name]) for name in self.tasks}
        return {name: self.head(task).for_file(task.class_names) for name, task in tasks.items()}

    @override
    def check_tasks(self, names: list[str]) -> None:
        refuse_difference(list(self.tasks), names, "the merge is made of")
        super().check_tasks(names)
