"""Merging and forgetting from files to a file, in bounded memory, by any number of processes.

Knows neither Lightning nor the library that builds encoders: a merge of files costs little more
than importing torch, which is itself imported on the first use of a name that needs it: a command
line is read, and what is wrong with it said, before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sta_lightning.engine.forgetting import ForgettingJob
    from sta_lightning.engine.fusion import FusionJob
    from sta_lightning.engine.heads import TaskHead, read_head_file, read_heads
    from sta_lightning.engine.job import Job
    from sta_lightning.engine.opened import Pretrained
    from sta_lightning.engine.options import ForgettingOptions, FusionOptions, MergeOptions
    from sta_lightning.engine.processes import launched_processes
    from sta_lightning.engine.sources import TaskSource
    from sta_lightning.engine.vectors import write_vectors

# The light ones first.
_FILES = ("sources", "options", "processes", "heads", "opened", "job", "fusion", "forgetting", "vectors")

__all__ = [
    "ForgettingJob",
    "ForgettingOptions",
    "FusionJob",
    "FusionOptions",
    "Job",
    "MergeOptions",
    "Pretrained",
    "TaskHead",
    "TaskSource",
    "launched_processes",
    "read_head_file",
    "read_heads",
    "write_vectors",
]


def __getattr__(name: str) -> Any:
    """Import a name from its file when it is first asked for (PEP 562)."""
    for file in _FILES if name in __all__ else ():
        home = importlib.import_module(f"{__name__}.{file}")
        if hasattr(home, name):
            globals()[name] = getattr(home, name)
            return globals()[name]
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
