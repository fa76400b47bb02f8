"""The tasks of a run, their images, and what decides a step's key about them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sta_lightning.benchmark.progress import bar
from sta_lightning.benchmark.settings import ModelSettings
from sta_lightning.encoders.architectures import RANDOM
from sta_lightning.encoders.pretrained import pretrained_file
from sta_lightning.errors import StaError, listed
from sta_lightning.tasks import TaskDataModule, get_task
from sta_lightning.tasks.split import split_indices
from sta_lightning.tasks.task import Split


class Remembered(Dataset[tuple[Tensor, int]]):
    """A data set that decodes each image once, as long as the memory lent to it lasts.

    Args:
        base: gives ``(float32 [3, S, S], label)``, the same at every call.
        memory: shared by several data sets; what does not fit is decoded again.
    """

    def __init__(self, base: Dataset[tuple[Tensor, int]], memory: Memory) -> None:
        self.base = base
        self._memory = memory
        self._samples: dict[int, tuple[Tensor, int]] = {}

    def __len__(self) -> int:
        return len(self.base)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        missing = [index for index in indices if index not in self._samples]
        fresh: dict[int, tuple[Tensor, int]] = {}
        if missing:
            batched = getattr(self.base, "__getitems__", None)
            read = batched(missing) if callable(batched) else [self.base[index] for index in missing]
            fresh = dict(zip(missing, read, strict=True))
            for index, (image, label) in fresh.items():
                if self._memory.take(image.nbytes):
                    # A copy: the images of a batch are views of one tensor, which would stay alive
                    # as a whole.
                    self._samples[index] = (image.clone(), label)
        return [self._samples[index] if index in self._samples else fresh[index] for index in indices]

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Images ``[B, 3, S, S]`` without their labels, as a learned merge takes them."""
        return torch.stack([image for image, _ in self.__getitems__(indices)])


@dataclass
class Memory:
    """Bytes that may still be used."""

    left: int

    def take(self, size: int) -> bool:
        """Take ``size`` bytes if there are as many."""
        if size > self.left:
            return False
        self.left -= size
        return True


class Member(NamedTuple):
    """One task of a run: its registered name or YAML file, and its images' folder, if given."""

    spec: str
    root: str | None


class Suite:
    """Tasks, control and encoder of a run, and the evaluation images, the same for all seeds.

    A control without validation images gives up a fixed part of its test images for them: the part
    that :func:`~sta_lightning.tasks.split.split_indices` sets aside, which is never tested on.

    Args:
        settings: of the models.

    Raises:
        StaError: when a task is unknown, stands twice, or an override or a root belongs to none.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.members: dict[str, Member] = {}
        for spec in [*settings.tasks, settings.control]:
            name = get_task(spec).name
            if name in self.members:
                raise StaError(
                    f"the task {name!r} was given twice; tasks and control need names of their own"
                )
            self.members[name] = Member(spec, settings.roots.get(name, settings.roots.get(spec)))
        *tasks, self.control = self.members
        self.tasks = tuple(tasks)
        for what, given, allowed in (
            ("overrides", settings.overrides, self.tasks),
            ("roots", settings.roots, (*self.members, *settings.tasks, settings.control)),
        ):
            stray = [key for key in given if key not in allowed]
            if stray:
                raise StaError(
                    f"{what}: {listed(stray)} is no task of this run; they are {listed(allowed, 20)}"
                )
        self._memory = Memory(int(settings.cache_gigabytes * 1e9))
        self.images = functools.cache(self._images)
        self._fingerprint = functools.cache(self._known_fingerprint)

    def open_all(self, spared: bool = False) -> None:
        """Open every split once, with a bar: the embedded suite is rendered on its first use.

        Args:
            spared: Whether the control's training images are looked at too.

        Raises:
            StaError: when files are missing, before hours are spent on the tasks whose files are
                there.
        """
        wanted = [
            (name, split)
            for name, member in self.members.items()
            for split in get_task(member.spec).splits
            if name != self.control or split == "test" or (spared and split == "train")
        ]
        with bar("open the images", len(wanted), unit="split") as progress:
            for name, split in wanted:
                self.datamodule(name).dataset(split)
                progress.update()

    def datamodule(self, task: str, seed: int = 0) -> TaskDataModule:
        """A datamodule of one task; the seed decides the order of the training images alone."""
        settings, member = self.settings, self.members[task]
        own = settings.fine_tuning(task)
        return TaskDataModule(
            member.spec,
            root=member.root,
            encoder=settings.encoder,
            image_size=settings.image_size,
            pretrained=settings.pretrained,
            batch_size=own.batch_size or settings.batch_size,
            num_workers=settings.num_workers,
            seed=seed,
            train_limit=self._limit(task, "train"),
            validation_limit=self._limit(task, "validation"),
            test_limit=self._limit(task, "test"),
            download=settings.download,
            cache_images=False,  # the run has a memory of its own
        )

    def _images(self, task: str, split: Split) -> Remembered:
        """Evaluation images of one split, decoded once for the whole run."""
        data: Dataset[tuple[Tensor, int]] = self.datamodule(task).dataset(self._opened(task, split))
        if self._sets_aside(task):
            kept, aside = split_indices(len(data))  # type: ignore[arg-type]
            data = Subset(data, kept if split == "test" else aside)
        return self.remembered(data)

    def remembered(self, data: Dataset[tuple[Tensor, int]]) -> Remembered:
        """A data set whose images are kept in the run's memory."""
        return Remembered(data, self._memory)

    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> set -> number of images."""
        return {
            "test": {name: len(self.images(name, "test")) for name in self.members},
            "validation": {name: len(self.images(name, "validation")) for name in self.tasks},
            "train": {name: len(self.datamodule(name).dataset("train")) for name in self.tasks},
        }

    def identity(self, split: Split, *sets: str) -> dict[str, Any]:
        """What decides which images of a split and which encoder a step sees, for its key.

        Images are known by their task's own fingerprint, such as the names, sizes and times of the
        files; training looks at validation images too, but they do not change its weights.
        """
        settings = self.settings
        return {
            "encoder": settings.encoder,
            "image_size": settings.image_size,
            "pretrained": settings.pretrained if self.pretrained_file() is None else None,
            "split": split,
            "tasks": {
                name: [*self.members[name], self._limit(name, opened), self._fingerprint(name, opened)]
                for name, opened in ((name, self._opened(name, split)) for name in sets)
            },
        }

    def files(self, *sets: str) -> dict[str, Path]:
        """Input files that decide which images and which encoder a step sees, for its key."""
        specs = {name: self.members[name].spec for name in sets}
        found = {f"task/{name}": Path(s) for name, s in specs.items() if s.endswith((".yaml", ".yml"))}
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
                "pretrained: 'random' was asked for, but task vectors need one fixed start. Give a file "
                "of weights."
            )
        return pretrained_file(settings.encoder, settings.pretrained)

    def _limit(self, task: str, split: Split) -> int | None:
        settings = self.settings
        if split == "train":
            return settings.fine_tuning(task).train_limit
        if split == "validation":
            return settings.validation_limit
        if task == self.control and settings.control_limit is not None:
            return settings.control_limit
        return settings.test_limit

    def scored(self, task: str) -> Split:
        """The split whose images are scored: validation of a control without training images."""
        return "train" if "train" in get_task(self.members[task].spec).splits else "validation"

    def _sets_aside(self, task: str) -> bool:
        return task == self.control and "validation" not in get_task(self.members[task].spec).splits

    def _opened(self, task: str, split: Split) -> Split:
        """The split whose images serve as a split's."""
        return "test" if split == "validation" and self._sets_aside(task) else split

    def _known_fingerprint(self, name: str, split: Split) -> str | None:
        """What changes with the images; ``None`` if nothing tells, as of an opener of one's own."""
        spec, root = self.members[name]
        task = get_task(spec)
        try:
            # A control has test images alone.
            return task.fingerprint(split, root) if split in task.splits else None
        except StaError:
            return None
