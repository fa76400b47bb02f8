"""Which samples of a batch are real, and which only fill up the last round of the processes."""

from __future__ import annotations

import warnings
from typing import Any, cast

from torch.utils.data import DataLoader, DistributedSampler


def real_samples(loader: Any, batch_idx: int, size: int) -> int:
    """Count the leading samples of a batch that no other process evaluates too.

    Lightning gives every process equally many samples: 7 samples on 2 processes become 8, the first
    one twice. The repetitions stand at the end of a process's share, so cutting them off leaves
    each sample counted once, while all processes still run equally many batches.

    Args:
        loader: The loader that the batch came from, after Lightning has put its sampler in.
        batch_idx: The batch's place in the loader, from 0.
        size: Samples in the batch.

    Returns:
        A number from 0 to ``size``; the samples after it are repetitions.
    """
    found = _shared(loader)
    if found is None:
        return size
    sampler, batch_size, length = found
    # Sample k of process r is sample r + k · processes of the whole (of a permutation of it, if
    # shuffled).
    share = len(range(sampler.rank, length, sampler.num_replicas))
    return min(max(share - batch_idx * batch_size, 0), size)


def training_share(loader: Any, batch_idx: int, size: int) -> tuple[int, float]:
    """Tell what of a training batch counts on this process, and how much.

    DDP averages the processes' gradients. In the last batch of an epoch one process may have fewer
    real samples than another; the mean of their means would then not be the mean over the samples.

    Args:
        loader: See :func:`real_samples`, as for the following.
        batch_idx: The batch's place in the loader.
        size: Samples in the batch.

    Returns:
        How many leading samples are real, and the factor for the mean loss over them with which the
        average over the processes is the mean over all real samples of all processes. It is 1 where
        all have equally many.
    """
    count = real_samples(loader, batch_idx, size)
    found = _shared(loader)
    if found is None:
        return count, 1.0
    sampler, batch_size, length = found
    together = batch_size * sampler.num_replicas
    everything = min(together, length - batch_idx * together)
    return count, count * sampler.num_replicas / everything


def _shared(loader: Any) -> tuple[DistributedSampler[Any], int, int] | None:
    """Sampler, a process's batch size and number of samples, where processes share them out."""
    if not isinstance(loader, DataLoader):
        return None
    sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    batch_size = cast(int | None, getattr(loader.batch_sampler, "batch_size", loader.batch_size))
    return None if batch_size is None else (sampler, batch_size, len(cast(Any, sampler.dataset)))


def accept_padding() -> None:
    """Silence Lightning's advice about the repetitions, which ``real_samples`` cuts off."""
    warnings.filterwarnings("ignore", message="Using `DistributedSampler` with the dataloaders")
