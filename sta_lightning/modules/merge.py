from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from typing_extensions import override

from sta_lightning.arithmetic import Merged
from sta_lightning.arithmetic.workers import Processes
from sta_lightning.callbacks.scorable import made_once
from sta_lightning.engine import FusionOptions, TaskHead, TaskSource
from sta_lightning.engine.defaults import AUTO, DATA_FREE
from sta_lightning.engine.options import refuse_auto
from sta_lightning.errors import StaError, listed
from sta_lightning.modules.evaluation import members_of, module_key, refuse_difference
from sta_lightning.modules.foretelling import Candidate, Judge, chosen_settings, ranking
from sta_lightning.modules.merged import MergedEvaluation
from sta_lightning.tasks import get_task


class MergeModule(MergedEvaluation):
    """Fuse encoders that were fine-tuned on several tasks (Eq. 14 to 19), and evaluate the result.

    Each task is evaluated with its own head. Logs ``test/<task>/acc``, ``test/avg_acc``,
    ``test/control/<name>/acc``, the share of entries kept per tensor and task, and the size of the
    change; see MultiTaskEvaluation.

    With the method ``auto`` an evaluation merges by many methods first, and compares the result
    with the fine-tuned models on a few training images of every task without their labels; what is
    merged then is the nearest. Its settings are ``candidates``, names of methods, and ``samples``,
    images of each task (32).

    Args:
        tasks: By task name (or the path of a task's YAML file): the files of that task, or the path
            of its fine-tuned encoder alone. Or the names alone, where ``files`` says where these
            lie.
        options: See :class:`~sta_lightning.engine.FusionOptions`.

    Attributes:
        ranking: With the method ``auto``: the candidates, the nearest first, once an evaluation has
            begun.

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
        self.ranking: list[Candidate] = []
        self._auto: Mapping[str, Any] | None = None
        if made.method == AUTO:
            self._auto = chosen_settings(made)
            # Until the choice is made; nothing is merged before.
            made = replace(made, method=DATA_FREE, settings=None)
        super().__init__(made, heads)
        if self._auto is not None:
            self.hparams.update(method=AUTO, settings=dict(self._auto))
        self._with_heads = made.heads

    @override
    def load(self) -> None:
        if self._auto is not None and not self.ranking:
            self._choose(**self._auto)
        super().load()

    def _choose(self, candidates: list[str] | None, samples: int) -> None:
        """Choose the candidate that is nearest; the first process does, for all."""
        options = cast(FusionOptions, self.options)
        members = members_of(self.trainer.datamodule)  # type: ignore[attr-defined]
        if missing := [task for task in self.tasks if task not in members]:
            raise StaError(
                "method 'auto' compares predictions on training images of every task, and the datamodule brings none of "
                f"{listed(missing)}. Give it all tasks of the merge, or name a method."
            )

        def ranked() -> list[Candidate]:
            images = {
                task: members[task]
                .dataset("train")
                .batch(members[task].scoring_samples(samples, options.seed))
                for task in self.tasks
            }
            judge = Judge(
                self.original(),
                {task: str(source.finetuned) for task, source in self.tasks.items()},
                {task: self.heads[module_key(task)] for task in self.tasks},  # type: ignore[misc]
                images,
                self.trainer.strategy.root_device,
            )
            with self._pretrained_for_merge() as pretrained:
                return ranking(options, pretrained, judge, candidates)

        self.ranking = made_once(self.trainer, ranked)
        best = self.ranking[0]
        options = replace(options, method=best.method, scale=best.scale)
        options.ranking = [candidate.plain() for candidate in self.ranking]
        self.options, self.job = options, options.job()

    @override
    def merge(self) -> Merged:
        self._check_chosen()
        return super().merge()

    @override
    def save(self, path: str | Path, processes: Processes | None = None) -> Path:
        self._check_chosen()
        return super().save(path, processes)

    def _check_chosen(self) -> None:
        if self._auto is not None and not self.ranking:
            refuse_auto(AUTO)

    @override
    def describe(self) -> dict[str, Any]:
        """Return the settings; the ranking is in the written file alone."""
        self._check_chosen()
        return {name: value for name, value in super().describe().items() if name != "ranking"}

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
