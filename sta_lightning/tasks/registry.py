"""Find a task by its name, or read it from a YAML file."""

from __future__ import annotations

from pathlib import Path

from sta_lightning.errors import StaError, listed
from sta_lightning.tasks.task import Task

_REGISTERED: dict[str, Task] = {}


def register_task(task: Task) -> Task:
    """Make a task known by its name, for this process.

    Args:
        task: The task. Registering the same object again changes nothing.

    Returns:
        The task.

    Raises:
        StaError: if another task has that name.
    """
    known = _REGISTERED.get(task.name)
    if (known is not None and known is not task) or task.name in _builtin_names():
        raise StaError(f"A task named '{task.name}' is registered already: choose another name.")
    _REGISTERED[task.name] = task
    return task


def get_task(spec: str) -> Task:
    """Find a task.

    Args:
        spec: A name, or the path of a YAML file that describes a task of image folders (it ends in
            .yaml or .yml).

    Raises:
        StaError: that lists the names there are, or tells what is wrong with the file.
    """
    if spec.endswith((".yaml", ".yml")):
        from sta_lightning.tasks.folder import load_folder_task

        return load_folder_task(Path(spec))
    if spec in _REGISTERED:
        return _REGISTERED[spec]
    for tasks in _builtin():
        if spec in tasks:
            return tasks[spec]
    raise StaError(
        f"The task '{spec}' was asked for. There are {listed(task_names(), limit=100)}; a folder of images "
        "per class becomes a task through a YAML file: give its path, ending in .yaml."
    )


def task_names() -> list[str]:
    """Return the names that ``get_task`` knows: embedded suite, published sets, registered tasks."""
    return [*_builtin_names(), *_REGISTERED]


def _builtin() -> tuple[dict[str, Task], dict[str, Task]]:
    # Imported here: a name is resolved long after this module has been imported, and only then is a
    # suite needed.
    from sta_lightning.tasks.miniature import MINIATURE_TASKS
    from sta_lightning.tasks.published import PUBLISHED_TASKS

    return MINIATURE_TASKS, PUBLISHED_TASKS


def _builtin_names() -> list[str]:
    return [name for tasks in _builtin() for name in tasks]
