"""Evaluation images are decoded once, within the memory that is lent to them."""

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sta_lightning.benchmark.evaluation import accuracy, pack, unpack
from sta_lightning.benchmark.images import Memory, Remembered


class Counting(Dataset[tuple[Tensor, int]]):
    def __init__(self) -> None:
        self.reads: list[int] = []

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads.append(index)
        return torch.full((3, 2, 2), float(index)), index


def test_each_image_is_read_once_while_memory_lasts() -> None:
    base = Counting()
    memory = Memory(3 * 48)  # three images of 12 floats
    data = Remembered(base, memory)
    first = data.__getitems__([0, 1, 2, 3])
    second = data.__getitems__([3, 2, 1, 0])
    assert base.reads == [0, 1, 2, 3, 3]  # the fourth did not fit
    assert [label for _, label in second] == [3, 2, 1, 0]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, reversed(second), strict=True))
    assert memory.left == 0
    assert len(data) == 4


def test_memory_is_shared() -> None:
    memory = Memory(48)
    one, two = Counting(), Counting()
    for base in (one, two):
        data = Remembered(base, memory)
        data[0]
        data[0]
    assert (one.reads, two.reads) == ([0], [0, 0])


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
def test_packed_bits_come_back(count: int) -> None:
    bits = (torch.rand(count, generator=torch.Generator().manual_seed(count)) > 0.5).numpy()
    assert unpack(pack(bits)).tolist() == bits.tolist()
    if count:
        assert accuracy(bits) == pytest.approx(100 * bits.mean(), abs=1e-4)
