"""The embedded suite: six small image tasks and a control set of objects, rendered by code."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sta_lightning.errors import StaError
from sta_lightning.tasks.miniature.scenes import CONTROL, SCENES, SUITE_TASKS
from sta_lightning.tasks.miniature.suite import MiniatureDataset
from sta_lightning.tasks.task import Split, Task

__all__ = ["CONTROL", "MINIATURE_TASKS", "SUITE_TASKS", "MiniatureDataset"]


def _open(name: str, split: Split, root: Path | None) -> MiniatureDataset:
    if root is not None:
        raise StaError(
            f"The root '{root}' was given for '{name}', whose images are rendered: leave it out (STA_CACHE says where "
            "rendered images are kept)."
        )
    return MiniatureDataset(name, split)


MINIATURE_TASKS: dict[str, Task] = {
    name: Task(name, scene.class_names, scene.templates, partial(_open, name), own_validation=True)
    for name, scene in SCENES.items()
}
"""The six tasks in the order of the paper's tables' kinds, and ``objects``, the control set."""
