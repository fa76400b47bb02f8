"""A task by its name, or by the YAML file that describes it."""

from __future__ import annotations

from pathlib import Path

from sta_lightning.errors import StaError
from sta_lightning.tasks.folder import load_folder_task
from sta_lightning.tasks.hub import load_hub_task
from sta_lightning.tasks.registry import named_task
from sta_lightning.tasks.table import load_table_task
from sta_lightning.tasks.task import Task
from sta_lightning.tasks.task_file import TaskFile

_KINDS = {"csv": load_table_task, "huggingface": load_hub_task}


def get_task(spec: str) -> Task:
    """Find a task.

    Args:
        spec: A name, or the path of a YAML file (it ends in .yaml or .yml).

    Raises:
        StaError: that lists the names there are, or says what is wrong with the file.
    """
    return load_task(Path(spec)) if spec.endswith((".yaml", ".yml")) else named_task(spec)


def load_task(path: Path) -> Task:
    """Read a task from a YAML file.

    With the key ``csv`` it is a table of paths and labels (``load_table_task``), with
    ``huggingface`` a data set for the package ``datasets`` (``load_hub_task``), otherwise folders
    (``load_folder_task``).

    Raises:
        StaError: that says what is wrong with the file.
    """
    file = TaskFile.read(path)
    kinds = [kind for kind in _KINDS if kind in file.settings]
    if len(kinds) == 2:
        raise StaError(f"{path} has both `csv` and `huggingface`: a task's images come from one of them.")
    return _KINDS[kinds[0]](file) if kinds else load_folder_task(file)
