"""The tasks of a run: what they are, where their images lie, and what decides a step's key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sta_lightning.encoders.architectures import RANDOM
from sta_lightning.encoders.pretrained import pretrained_file
from sta_lightning.errors import StaError, listed
from sta_lightning.experiment.images import EvaluationData, Memory, Remembered
from sta_lightning.experiment.progress import bar
from sta_lightning.experiment.settings import ModelSettings, TaskOverride
from sta_lightning.tasks import TaskDataModule, get_task
from sta_lightning.tasks.task import Split


@dataclass(frozen=True)
class Member:
    """One task of the run.

    Attributes:
        name: of the task.
        spec: as the settings have it: a registered name or the path of a YAML file.
        root: folder of its images, if the settings name one.
    """

    name: str
    spec: str
    root: str | None

    @property
    def files(self) -> dict[str, Path]:
        """Files that say what the task is, for the keys of the steps."""
        return {f"task/{self.name}": Path(self.spec)} if self.spec.endswith((".yaml", ".yml")) else {}


@dataclass
class Suite:
    """Tasks, control and encoder of a run, as far as they do not change during it.

    Args:
        settings: of the run.

    Raises:
        StaError: when a task is unknown, stands twice, or an override or a root belongs to none.
    """

    settings: ModelSettings
    members: dict[str, Member] = field(init=False)
    control: str = field(init=False)
    _memory: Memory = field(init=False)
    _opened: bool = field(init=False, default=False)
    _remembered: dict[tuple[str, Split], Remembered] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Resolve the names."""
        settings = self.settings
        self._memory = Memory(int(settings.cache_gigabytes * 1e9))
        self.members = {}
        for spec in [*settings.tasks, settings.control]:
            name = get_task(spec).name
            if name in self.members:
                raise StaError(
                    f"the task {name!r} was given twice; tasks and control need names of their own"
                )
            self.members[name] = Member(name, spec, settings.roots.get(name, settings.roots.get(spec)))
        self.control = list(self.members)[-1]
        for what, given, allowed in (
            ("overrides", settings.overrides, self.tasks),
            ("roots", settings.roots, (*self.members, *settings.tasks, settings.control)),
        ):
            stray = [key for key in given if key not in allowed]
            if stray:
                raise StaError(
                    f"{what}: {listed(stray)} is no task of this run; they are {listed(allowed, 20)}"
                )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks without the control, in the order of the tables."""
        return tuple(name for name in self.members if name != self.control)

    def fine_tuning(self, task: str) -> TaskOverride:
        """Fine-tuning settings of one task."""
        return self.settings.fine_tuning(task)

    def open_all(self) -> None:
        """Open every split once, with a bar: the embedded suite is rendered on its first use.

        Raises:
            StaError: when files are missing, before hours are spent on the tasks whose files are
                there.
        """
        if self._opened:
            return
        wanted = [
            (name, split)
            for name, member in self.members.items()
            for split in get_task(member.spec).splits
            if name != self.control or split == "test"
        ]
        progress = bar("open the images", len(wanted), unit="split")
        try:
            for name, split in wanted:
                self.datamodule(name).dataset(split)
                progress.update()
        finally:
            progress.close()
        self._opened = True

    def datamodule(self, task: str, batch_size: int | None = None) -> TaskDataModule:
        """A datamodule of one task for training, prototypes and scoring."""
        settings, member = self.settings, self.members[task]
        own = settings.fine_tuning(task)
        return TaskDataModule(
            member.spec,
            root=member.root,
            encoder=settings.encoder,
            image_size=settings.image_size,
            pretrained=settings.pretrained,
            batch_size=batch_size or own.batch_size or settings.batch_size,
            num_workers=settings.num_workers,
            seed=settings.seed,
            train_limit=self._limit(task, "train"),
            validation_limit=self._limit(task, "validation"),
            test_limit=self._limit(task, "test"),
            download=settings.download,
        )

    def images(self, task: str, split: Split) -> Remembered:
        """Evaluation images of one split, decoded once for the whole run."""
        if (task, split) not in self._remembered:
            self._remembered[task, split] = Remembered(self.datamodule(task).dataset(split), self._memory)
        return self._remembered[task, split]

    def evaluation(self, tasks: tuple[str, ...], split: Split, *, control: bool) -> EvaluationData:
        """Loaders for ``Trainer.test`` over some tasks, the control last if asked for."""
        names = (*tasks, self.control) if control else tasks
        data = [self.images(name, split) for name in names]
        return EvaluationData(
            {name: self.datamodule(name) for name in names},
            data,
            self.settings.evaluation_batch_size,
            self.control if control else None,
        )

    def identity(self, split: Split, *tasks: str) -> dict[str, Any]:
        """Settings that decide which images of a split and which encoder a step sees, for its key.

        Training looks at validation images too, but they do not change its weights.
        """
        settings = self.settings
        return {
            "encoder": settings.encoder,
            "image_size": settings.image_size,
            "pretrained": settings.pretrained if self.pretrained_file() is None else None,
            "split": split,
            "tasks": {
                name: [self.members[name].spec, self.members[name].root, self._limit(name, split)]
                for name in tasks
            },
        }

    def _limit(self, task: str, split: Split) -> int | None:
        settings = self.settings
        if split == "train":
            return settings.fine_tuning(task).train_limit
        if split == "validation":
            return settings.validation_limit
        if task == self.control and settings.control_limit is not None:
            return settings.control_limit
        return settings.test_limit

    def files(self, *tasks: str) -> dict[str, Path]:
        """Input files that decide which images and which encoder a step sees, for its key."""
        found: dict[str, Path] = {}
        for name in tasks:
            found |= self.members[name].files
        pretrained = self.pretrained_file()
        return found if pretrained is None else {**found, "pretrained": pretrained}

    def pretrained_file(self) -> Path | None:
        """The file with the pretrained weights; ``None`` for a tag of open_clip.

        Raises:
            StaError: when random weights are asked for, which would differ at every building of the
                encoder.
        """
        settings = self.settings
        if settings.pretrained == RANDOM:
            raise StaError(
                "pretrained: 'random' was asked for, but task vectors need one fixed start. Give a file of weights."
            )
        return pretrained_file(settings.encoder, settings.pretrained)
