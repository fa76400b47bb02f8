"""Which samples of a batch are repetitions."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from sta_lightning.modules.padding import real_samples, training_share


def kept(loader: Any) -> list[int]:
    found: list[int] = []
    for index, batch in enumerate(loader):
        found += batch[: real_samples(loader, index, len(batch))].tolist()
    return found


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 12])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_sample_is_kept_once(length: int, world: int, batch_size: int, shuffle: bool) -> None:
    data: Any = range(length)
    everything: list[int] = []
    for rank in range(world):
        sampler: DistributedSampler[int] = DistributedSampler(data, world, rank, shuffle=shuffle)
        everything += kept(DataLoader(data, batch_size, sampler=sampler))
    assert sorted(everything) == list(range(length))


def test_lightnings_wrapper_of_another_sampler() -> None:
    data: Any = range(7)
    everything: list[int] = []
    for rank in range(2):
        sampler = DistributedSamplerWrapper(SequentialSampler(data), num_replicas=2, rank=rank, shuffle=False)
        everything += kept(DataLoader(data, 2, sampler=sampler))
    assert sorted(everything) == list(range(7))


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 12])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_average_over_processes_is_the_mean_over_samples(
    length: int, world: int, batch_size: int
) -> None:
    data: Any = range(length)
    loaders = [
        DataLoader(data, batch_size, sampler=DistributedSampler(data, world, rank, shuffle=False))
        for rank in range(world)
    ]
    seen = 0
    for index, batches in enumerate(zip(*loaders, strict=True)):
        means, everything = 0.0, []
        for loader, batch in zip(loaders, batches, strict=True):
            count, weight = training_share(loader, index, len(batch))
            everything += batch[:count].tolist()
            means += weight * float(batch[:count].double().mean()) / world if count else 0.0
            assert count or not weight
        assert means == pytest.approx(sum(everything) / len(everything))
        seen += len(everything)
    assert seen == length


def test_what_does_not_repeat_is_left_alone() -> None:
    data: Any = range(7)
    assert kept(DataLoader(data, 2)) == list(range(7))
    shares = [
        kept(DataLoader(data, 2, sampler=UnrepeatedDistributedSampler(data, 2, rank, shuffle=False)))
        for rank in range(2)
    ]
    assert shares == [[0, 2, 4, 6], [1, 3, 5]]
    assert real_samples([1, 2], 0, 2) == 2
    assert training_share(DataLoader(data, 2), 3, 1) == (1, 1.0)
