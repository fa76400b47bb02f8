"""Where published files lie, and one clear message when they do not."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from sta_lightning.errors import StaError, listed
from sta_lightning.tasks.task import Split

DATA_VARIABLE = "STA_DATA"
"""The environment variable that names the folder of published sets."""

Build = Callable[[Split, Path, bool], Dataset[Any]]


def data_folder(task: str, root: Path | None) -> Path:
    """Return the folder below which a published set is looked for.

    Args:
        task: The task's name, for the message.
        root: What the user gave; by default the environment variable STA_DATA tells.

    Raises:
        StaError: if neither says.
    """
    if root is not None:
        return root
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        raise StaError(
            f"The task '{task}' needs the folder of its files: give it with the option `root`, or set the "
            f"environment variable {DATA_VARIABLE}."
        )
    return Path(named).expanduser()


@dataclass(frozen=True)
class PublishedOpener:
    """Opens a published set, and says what is missing.

    Attributes:
        task: The task's name.
        files: What must lie below the root folder, by the split that needs it.
        build: Builds torchvision's data set from split, root folder, and whether to download.
        advice: A sentence on how to come by the files.
    """

    task: str
    files: tuple[tuple[Split, tuple[str, ...]], ...]
    build: Build
    advice: str = "Or let `download: true` fetch them."

    def __call__(self, split: Split, root: Path | None) -> Dataset[Any]:
        """Open a split (``train`` or ``test``)."""
        folder = data_folder(self.task, root)
        wanted = dict(self.files)[split]
        missing = [name for name in wanted if not (folder / name).exists()]
        if missing:
            raise StaError(
                f"The {split} images of the task '{self.task}' were looked for below {folder}, but there is "
                f"no {listed(missing, limit=10)}. Put there {listed(wanted, limit=10)} as published. "
                f"{self.advice}"
            )
        return self._built(split, folder, False)

    def download(self, root: Path | None) -> None:
        """Let torchvision fetch the published files, training and test."""
        folder = data_folder(self.task, root)
        for split, _ in self.files:
            self._built(split, folder, True)

    def _built(self, split: Split, folder: Path, download: bool) -> Dataset[Any]:
        try:
            return self.build(split, folder, download)
        except StaError:
            raise
        except Exception as error:
            doing = "fetched" if download else "read"
            raise StaError(
                f"The {split} images of the task '{self.task}' below {folder} could not be {doing}: "
                f"{error or type(error).__name__}. It needs {listed(dict(self.files)[split], limit=10)} as "
                f"published. {self.advice}"
            ) from error


def check_classes(task: str, found: list[str], expected: tuple[str, ...], where: Path) -> None:
    """Refuse a data set whose class folders would give other labels than the task's.

    Raises:
        StaError: that names the classes missing and superfluous.
    """
    if tuple(found) != expected:
        missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        raise StaError(
            f"The task '{task}' has {len(expected)} classes; below {where} are {len(found)}. Missing: "
            f"{listed(missing)}; not its own: {listed(extra)}. Labels would be wrong: put the published "
            "folders there."
        )
