"""The processes of a launcher, joined for one merge."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from sta_lightning.arithmetic.workers import Alone, Processes


class Group:
    """The processes of PyTorch's default group."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found


def own_device(device: torch.device | None) -> torch.device | None:
    """A GPU without a number: this process's own, among those on its machine.

    That is the current one if a launcher in Python has chosen it, else what torchrun or SLURM say.
    """
    if device is None or str(device) != "cuda":
        return device
    place = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return torch.device("cuda", torch.cuda.current_device() or place % torch.cuda.device_count())


@contextmanager
def launched_processes(timeout: float | None = None) -> Iterator[Processes]:
    """The processes of PyTorch's default group, those that ``torchrun`` started, or this one alone.

    Each works on tensors of its own; they meet a few times, and need to see the same files. Where a
    process waits longer than ``timeout`` seconds (``None``: PyTorch's 1800) for another, PyTorch
    raises its own error.
    """
    if dist.is_available() and dist.is_initialized():
        yield Group()
    elif (
        dist.is_available() and dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    ):
        dist.init_process_group("gloo", timeout=None if timeout is None else timedelta(seconds=timeout))
        try:
            yield Group()
        finally:
            dist.destroy_process_group()
    else:
        yield Alone()
