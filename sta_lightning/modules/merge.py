from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from typing_extensions import override

from sta_lightning.callbacks.scorable import made_once
from sta_lightning.encoders import ClassificationHead
from sta_lightning.engine import FusionOptions, Pretrained, TaskHead, TaskSource
from sta_lightning.engine.defaults import BY_IMAGES, DATA_FREE
from sta_lightning.engine.options import refuse_by_images
from sta_lightning.errors import StaError, listed
from sta_lightning.modules.by_images import Surroundings, checked_settings, resolved
from sta_lightning.modules.evaluation import members_of, module_key, refuse_difference
from sta_lightning.modules.merged import MergedEvaluation
from sta_lightning.tasks import get_task


class MergeModule(MergedEvaluation):
    """Fuse encoders that were fine-tuned on several tasks (Eq. 14 to 19), and evaluate the result.

    Each task is evaluated with its own head. Logs ``test/<task>/acc``, ``test/avg_acc``,
    ``test/control/<name>/acc``, the share of entries kept per tensor and task, and the size of the
    change; see MultiTaskEvaluation.

    Two methods look at training images of every task, without their labels, as an evaluation
    begins, ``samples`` of each: ``auto`` merges by many methods (``candidates``) and takes the one
    whose predictions are nearest to the fine-tuned models', and ``regmean_plus_plus`` is RegMean on
    the inputs that the merged blocks give.

    Args:
        tasks: By task name (or the path of a task's YAML file): the files of that task, or the path
            of its fine-tuned encoder alone. Or the names alone, where ``files`` says where these
            lie.
        options: See :class:`~sta_lightning.engine.FusionOptions`.

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
        if made.method in BY_IMAGES:
            checked_settings(made)
            self._by_images = made
            # Until the images are there; nothing is merged before.
            made = replace(made, method=DATA_FREE, settings=None)
        super().__init__(made, heads)
        if self._by_images is not None:
            self.hparams.update(method=self._by_images.method, settings=self._by_images.settings)
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

    def _resolve(self, asked: FusionOptions) -> None:
        """Turn a method by images into a merge of files; the first process does, for all."""
        trainer = cast(Any, self.trainer)
        members = members_of(trainer.datamodule)
        if missing := [task for task in self.tasks if task not in members]:
            raise StaError(
                f"method '{asked.method}' looks at training images of every task, and the datamodule brings none of "
                f"{listed(missing)}. Give it all tasks of the merge, or name another method."
            )

        def found() -> FusionOptions:
            count = checked_settings(asked)["samples"]
            drawn = {task: members[task].scoring_samples(count, asked.seed) for task in self.tasks}
            with MergedEvaluation._pretrained_for_merge(self) as pretrained:
                around = Surroundings(
                    pretrained,
                    deepcopy(self.original()),
                    {task: cast(ClassificationHead, self.heads[module_key(task)]) for task in self.tasks},
                    {task: members[task].dataset("train").batch(chosen) for task, chosen in drawn.items()},
                    trainer.strategy.root_device,
                )
                return resolved(asked, around)

        self.options = made_once(self.trainer, found)
        self.job = self.options.job()

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
