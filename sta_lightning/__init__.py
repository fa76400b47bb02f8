"""Selective Task Arithmetic (STA) on PyTorch Lightning.

Fuse fine-tuned models into one, or make a model forget a task, by keeping only the important
entries of each task vector.

The names below are imported on first use (PEP 562), so that ``from sta_lightning import fuse,
forget`` costs torch alone and ``import sta_lightning`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sta_lightning.arithmetic import (
        FORGET_METHODS,
        FUSION_METHODS,
        MEASURES,
        average,
        forget_method,
        fusion_method,
        importance_for,
        negate,
        task_arithmetic,
        task_vector,
        unlearn,
    )
    from sta_lightning.callbacks import ExportWeights, GramCollection, ImportanceScoring
    from sta_lightning.encoders import build_encoder
    from sta_lightning.errors import StaError
    from sta_lightning.merging import MergedModel, forget, fuse, merge
    from sta_lightning.modules import AdaMerging, CLIPClassifier, ForgetModule, MergeModule
    from sta_lightning.tasks import MultiTaskDataModule, TaskDataModule, get_task, register_task
    from sta_lightning.weights import encoder_weights, load_weights, read_metadata, save_weights

__version__ = "0.2.0"

# From the ground up, but for the front door, which has the names of functions that it calls.
_ROOMS = ("errors", "merging", "arithmetic", "weights", "encoders", "tasks", "callbacks", "modules")

__all__ = [
    "AdaMerging",
    "CLIPClassifier",
    "ExportWeights",
    "FORGET_METHODS",
    "FUSION_METHODS",
    "ForgetModule",
    "GramCollection",
    "ImportanceScoring",
    "MEASURES",
    "MergeModule",
    "MergedModel",
    "MultiTaskDataModule",
    "StaError",
    "TaskDataModule",
    "average",
    "build_encoder",
    "encoder_weights",
    "forget",
    "forget_method",
    "fuse",
    "fusion_method",
    "get_task",
    "importance_for",
    "load_weights",
    "merge",
    "negate",
    "read_metadata",
    "register_task",
    "save_weights",
    "task_arithmetic",
    "task_vector",
    "unlearn",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first asked for."""
    for room in _ROOMS if name in __all__ else ():
        home = importlib.import_module(f"sta_lightning.{room}")
        if hasattr(home, name):
            globals()[name] = getattr(home, name)
            return globals()[name]
    raise AttributeError(f"module 'sta_lightning' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Every public name, imported already or not, and no other."""
    return sorted(__all__)
