from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import override

from sta_lightning.engine import FusionOptions, TaskHead, TaskSource
from sta_lightning.errors import StaError, listed
from sta_lightning.modules.evaluation import refuse_difference
from sta_lightning.modules.merged import MergedEvaluation
from sta_lightning.tasks import get_task


class MergeModule(MergedEvaluation):
    """Fuse encoders that were fine-tuned on several tasks (Eq. 14 to 19), and evaluate the result.

    Each task is evaluated with its own head. Logs ``test/<task>/acc``, ``test/avg_acc``,
    ``test/control/<name>/acc``, the share of entries kept per tensor and task, and the size of the
    change; see MultiTaskEvaluation.

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
        super().__init__(made, heads)
        self._with_heads = made.heads

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
