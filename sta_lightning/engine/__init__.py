"""Merging and forgetting from files to a file, in bounded memory, by any number of processes.

Knows neither Lightning nor the library that builds encoders: a merge of files costs little more
than importing torch.
"""

from sta_lightning.engine.files import TaskSource
from sta_lightning.engine.forgetting import ForgettingJob
from sta_lightning.engine.fusion import FusionJob
from sta_lightning.engine.heads import TaskHead, read_head_file, read_heads
from sta_lightning.engine.job import Job, Pretrained
from sta_lightning.engine.options import ForgettingOptions, FusionOptions, MergeOptions
from sta_lightning.engine.processes import launched_processes
from sta_lightning.engine.vectors import write_vectors

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
