"""The embedded suite: six small image tasks and a control set of objects, rendered by code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sta_lightning.errors import StaError
from sta_lightning.tasks.miniature.scenes import CONTROL, SCENES, SUITE_TASKS, VERSION
from sta_lightning.tasks.miniature.suite import MiniatureDataset, identity
from sta_lightning.tasks.task import Split, Task

__all__ = ["CONTROL", "MINIATURE_TASKS", "SUITE_TASKS", "MiniatureDataset"]


@dataclass(frozen=True)
class MiniatureOpener:
    """Opens a set of the suite, rendered on its first use."""

    name: str

    def __call__(self, split: Split, root: Path | None) -> MiniatureDataset:
        """Open a split."""
        if root is not None:
            raise StaError(
                f"The root '{root}' was given for '{self.name}', whose images are rendered: leave it out (STA_CACHE says "
                "where rendered images are kept)."
            )
        return MiniatureDataset(self.name, split)

    def fingerprint(self, split: Split, root: Path | None) -> str:
        """Name what the split's images follow from."""
        return f"miniature-{VERSION}/{identity(self.name, split)}"


MINIATURE_TASKS: dict[str, Task] = {
    name: Task(name, scene.class_names, scene.templates, MiniatureOpener(name), own_validation=True)
    for name, scene in SCENES.items()
}
"""The six tasks in the order of the paper's tables' kinds, and ``objects``, the control set."""
