"""Where published files lie, and one clear message when they do not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from sta_lightning.errors import StaError, listed
from sta_lightning.tasks.image_cache import files_fingerprint
from sta_lightning.tasks.task import Split

DATA_VARIABLE = "STA_DATA"
"""The environment variable that names the folder of published sets."""

Build = Callable[[Split, Path, bool], Dataset[Any]]

_EITHER = " or "


@dataclass(frozen=True)
class PublishedOpener:
    """Opens a published set, and says what is missing.

    Attributes:
        task: The task's name.
        classes: How many classes it has; other labels are refused.
        files: What must lie below the root folder, by the split that needs it. ``one or other`` is
            there if either is.
        build: Builds torchvision's data set from split, root folder, and whether to download.
        advice: A sentence on how to come by the files.
    """

    task: str
    classes: int
    files: Mapping[Split, tuple[str, ...]]
    build: Build
    advice: str

    def __call__(self, split: Split, root: Path | None) -> Dataset[Any]:
        """Open a split that ``files`` names."""
        folder, wanted = self._folder(root), self.files[split]
        missing = [name for name in wanted if _present(folder, name) is None]
        if missing:
            raise StaError(
                f"The {split} images of the task '{self.task}' were looked for below {folder}, but there is "
                f"no {listed(missing, limit=10)}. Put there {listed(wanted, limit=10)} as published. "
                f"{self.advice}"
            )
        return self._built(split, folder, False)

    def fingerprint(self, split: Split, root: Path | None) -> str:
        """Digest of the split's files: names, sizes and times of change."""
        folder = self._folder(root)
        return files_fingerprint(folder, (_present(folder, name) or name for name in self.files[split]))

    def download(self, root: Path | None) -> None:
        """Let torchvision fetch the published files of all splits."""
        for split in self.files:
            self._built(split, self._folder(root), True)

    def _folder(self, root: Path | None) -> Path:
        named = root or os.environ.get(DATA_VARIABLE)
        if not named:
            raise StaError(
                f"The task '{self.task}' needs the folder of its files: give it with the option `root`, or set the "
                f"environment variable {DATA_VARIABLE}."
            )
        return Path(named).expanduser()

    def _built(self, split: Split, folder: Path, download: bool) -> Dataset[Any]:
        what = f"The {split} images of the task '{self.task}' below {folder}"
        needed = listed(self.files[split], limit=10)
        try:
            data = self.build(split, folder, download)
            labels = known_labels(data)
        except StaError:
            raise
        except Exception as error:
            raise StaError(
                f"{what} could not be {'fetched' if download else 'read'}: {error or type(error).__name__}. "
                f"It needs {needed} as published. {self.advice}"
            ) from error
        lowest, highest = (0, 0) if labels is None or not len(labels) else torch.aminmax(labels)
        if lowest < 0 or highest >= self.classes:
            raise StaError(
                f"{what} have labels from {lowest} to {highest}; its {self.classes} classes are 0 to "
                f"{self.classes - 1}. Put the published files there: {needed}."
            )
        return data


def _present(folder: Path, name: str) -> str | None:
    """Return the first of the alternatives that is there."""
    return next((one for one in name.split(_EITHER) if (folder / one).exists()), None)


def known_labels(data: Any) -> torch.Tensor | None:
    """Return the labels of a data set of torchvision's where they lie in memory.

    Returns:
        int64 of any length (for a part of a set, those of the whole), or ``None`` where the labels
        are not in memory.
    """
    if isinstance(data, Subset):
        return known_labels(data.dataset)
    if isinstance(data, ConcatDataset):
        parts = [part for part in map(known_labels, data.datasets) if part is not None]
        return torch.cat(parts) if parts else None
    for name in ("targets", "labels", "_labels"):
        found = getattr(data, name, None)
        if found is not None:
            return torch.as_tensor(found, dtype=torch.int64).flatten()
    samples = getattr(data, "_samples", None)
    return None if samples is None else torch.tensor([int(label) for _, label in samples], dtype=torch.int64)


def check_classes(task: str, found: Sequence[str], expected: Sequence[str], where: Path) -> None:
    """Refuse a data set whose class folders would give other labels than the task's.

    Raises:
        StaError: that names the classes missing and superfluous.
    """
    if tuple(found) != tuple(expected):
        missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        order = "" if missing or extra else " They are the same, in another order."
        raise StaError(
            f"The task '{task}' has {len(expected)} classes; below {where} are {len(found)}. Missing: "
            f"{listed(missing)}; not its own: {listed(extra)}.{order} Labels would be wrong: put the published "
            "folders there."
        )
