"""Tasks by name: the embedded suite, the published sets, and those that a process registers."""

from __future__ import annotations

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
    if _tasks().get(task.name, task) is not task:
        raise StaError(f"A task named '{task.name}' is registered already: choose another name.")
    _REGISTERED[task.name] = task
    return task


def named_task(name: str) -> Task:
    """Find a task by its name.

    Raises:
        StaError: that lists the names there are.
    """
    tasks = _tasks()
    if name not in tasks:
        raise StaError(
            f"The task '{name}' was asked for. There are {listed(tasks, limit=100)}; a folder of images "
            "per class becomes a task through a YAML file: give its path, ending in .yaml."
        )
    return tasks[name]


def task_names() -> list[str]:
    """Return the names of the embedded suite, the published sets and the registered tasks."""
    return list(_tasks())


def _tasks() -> dict[str, Task]:
    # Imported here for their cost: a task that a YAML file describes needs neither.
    from sta_lightning.tasks.miniature import MINIATURE_TASKS
    from sta_lightning.tasks.published import PUBLISHED_TASKS

    return {**MINIATURE_TASKS, **PUBLISHED_TASKS, **_REGISTERED}
