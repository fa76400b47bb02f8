"""Several tasks for Lightning, one loader each: for evaluating a merged model."""

from __future__ import annotations

from typing import Any

from sta_lightning.errors import StaError, listed
from sta_lightning.tasks.datamodule import Batches, TaskDataModule
from sta_lightning.tasks.loading import NormalisesOnDevice
from sta_lightning.tasks.task import Split


class MultiTaskDataModule(NormalisesOnDevice):
    """Validation and test images of several tasks, preprocessed for one encoder.

    Args:
        tasks: Names of tasks, or paths of YAML files that describe folders of images.
        roots: Folder of a task's files, by the task's name; see ``TaskDataModule`` for those left
            out.
        control: A task that shows what was broken besides: evaluated after the others, and not part
            of their average.
        options: See :class:`TaskDataModule`; they hold for every task.

    Raises:
        StaError: if a task is unknown, or two have the same name.
    """

    def __init__(
        self,
        tasks: list[str],
        roots: dict[str, str] | None = None,
        control: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        folders = roots or {}
        specs = [*tasks, *([] if control is None else [control])]
        if not specs:
            raise StaError("No task was given: name one or more in `tasks`.")
        self.members: dict[str, TaskDataModule] = {}
        for spec in specs:
            member = TaskDataModule(spec, root=None, global_batch=False, **options)
            name = member.task.name
            if name in self.members:
                raise StaError(
                    f"The task '{name}' was given twice: tasks (and the control) need names of their own."
                )
            member.part_of = self
            member.root = folders.get(name, folders.get(spec))
            self.members[name] = member
            self.preprocess = member.preprocess  # all have one encoder
        if unknown := sorted(set(folders) - set(self.members) - set(specs)):
            raise StaError(f"`roots` names {listed(unknown)}, but the tasks are {listed(self.members)}.")
        self.control_name = None if control is None else list(self.members)[-1]

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names in the order of the test loaders, the control last."""
        return tuple(self.members)

    @property
    def validation_names(self) -> tuple[str, ...]:
        """The names in the order of the validation loaders; a control may have none."""
        return tuple(
            name
            for name, member in self.members.items()
            if name != self.control_name or "validation" in member.task.splits
        )

    def prepare_data(self) -> None:
        """Fetch the published files, if asked for."""
        for member in self.members.values():
            member.prepare_data()

    def setup(self, stage: str) -> None:
        """Open the splits that a stage needs, so that missing files are an error at once."""
        split: Split = "validation" if stage == "validate" else "test"
        names = self.validation_names if stage == "validate" else self.task_names
        for name in names:
            self.members[name].dataset(split)

    def val_dataloader(self) -> list[Batches]:
        """Return one loader for each of ``validation_names``."""
        return [self._member(name).val_dataloader() for name in self.validation_names]

    def test_dataloader(self) -> list[Batches]:
        """Return one loader for each of ``task_names``."""
        return [self._member(name).test_dataloader() for name in self.task_names]

    def predict_dataloader(self) -> list[Batches]:
        """Return one loader for each of ``task_names``."""
        return self.test_dataloader()

    def _member(self, name: str) -> TaskDataModule:
        """A member, under the same trainer."""
        self.members[name].trainer = self.trainer
        return self.members[name]
