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
    known = _REGISTERED.get(task.name)
    if (known is not None and known is not task) or task.name in _builtin_names():
        raise StaError(f"A task named '{task.name}' is registered already: choose another name.")
    _REGISTERED[task.name] = task
    return task


def named_task(name: str) -> Task:
    """Find a task by its name.

    Raises:
        StaError: that lists the names there are.
    """
    for tasks in (_REGISTERED, *_builtin()):
        if name in tasks:
            return tasks[name]
    raise StaError(
        f"The task '{name}' was asked for. There are {listed(task_names(), limit=100)}; a folder of images "
        "per class becomes a task through a YAML file: give its path, ending in .yaml."
    )


def task_names() -> list[str]:
    """Return the names of the embedded suite, the published sets and the registered tasks."""
    return [*_builtin_names(), *_REGISTERED]


def _builtin() -> tuple[dict[str, Task], dict[str, Task]]:
    # Imported here for their cost: a task that a YAML file describes needs neither.
    from sta_lightning.tasks.miniature import MINIATURE_TASKS
    from sta_lightning.tasks.published import PUBLISHED_TASKS

    return MINIATURE_TASKS, PUBLISHED_TASKS


def _builtin_names() -> list[str]:
    return [name for tasks in _builtin() for name in tasks]
