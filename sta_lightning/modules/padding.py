"""Which samples of an evaluation batch are real, and which only fill up the last round of the processes."""

from __future__ import annotations

import warnings
from typing import Any, cast

from torch.utils.data import DataLoader, DistributedSampler


def real_samples(loader: Any, batch_idx: int, size: int) -> int:
    """Count the leading samples of a batch that no other process evaluates too.

    Lightning gives every process equally many samples: 7 samples on 2 processes become 8, the first one twice. The
    repetitions stand at the end of a process's share, so cutting them off leaves each sample counted once, while all
    processes still run equally many batches.

    Args:
        loader: The loader that the batch came from, after Lightning has put its sampler in.
        batch_idx: The batch's place in the loader, from 0.
        size: Samples in the batch.

    Returns:
        A number from 0 to ``size``; the samples after it are repetitions.
    """
    if not isinstance(loader, DataLoader):
        return size
    sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return size
    batch_size = cast(int | None, getattr(loader.batch_sampler, "batch_size", loader.batch_size))
    if batch_size is None:
        return size
    length = len(cast(Any, sampler.dataset))
    # Sample k of process r is sample r + k · processes of the whole (of a permutation of it, if shuffled).
    share = len(range(sampler.rank, length, sampler.num_replicas))
    return min(max(share - batch_idx * batch_size, 0), size)


def accept_padding() -> None:
    """Silence Lightning's advice to evaluate on one device: it is about the repetitions that ``real_samples`` cuts off."""
    warnings.filterwarnings("ignore", message="Using `DistributedSampler` with the dataloaders")
