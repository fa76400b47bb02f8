"""Tasks: class names, prompts and images of a classification problem, and their datamodules."""

from sta_lightning.tasks.datamodule import TaskDataModule
from sta_lightning.tasks.find import get_task, load_task
from sta_lightning.tasks.multitask import MultiTaskDataModule
from sta_lightning.tasks.preprocess import Preprocess
from sta_lightning.tasks.registry import register_task, task_names
from sta_lightning.tasks.split import limited_indices, split_indices
from sta_lightning.tasks.task import SPLITS, Split, Task
from sta_lightning.tasks.unlabelled import UnlabelledDataModule

__all__ = [
    "Task",
    "Split",
    "SPLITS",
    "get_task",
    "register_task",
    "task_names",
    "load_task",
    "split_indices",
    "limited_indices",
    "Preprocess",
    "TaskDataModule",
    "MultiTaskDataModule",
    "UnlabelledDataModule",
]
