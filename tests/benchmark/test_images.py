"""Which images a benchmark takes, and that it decodes those of an evaluation once."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sta_lightning.benchmark.evaluation import accuracy, pack, unpack
from sta_lightning.benchmark.images import Memory, Remembered, Suite
from sta_lightning.benchmark.scoring import HEAD, SCORES, make_head, make_scores
from sta_lightning.benchmark.settings import BenchmarkSettings
from sta_lightning.weights import load_weights


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


def test_changed_pictures_are_computed_again(settings: BenchmarkSettings, tmp_path: Path) -> None:
    warm, cold = settings.models.tasks
    moved = tmp_path / "moved"
    folder = Path(warm).parent / "warm"
    shutil.copytree(folder, moved)  # with the files' times
    description = tmp_path / "warm.yaml"
    description.write_text(Path(warm).read_text().replace(str(folder), str(moved)))
    picture = next((moved / "test").rglob("*.png"))
    picture.write_bytes(picture.read_bytes() + b" ")
    before = Suite(settings.models)
    after = Suite(replace(settings.models, tasks=[str(description), cold]))
    for split, name, same in (("test", "warm", False), ("train", "warm", True), ("test", "cold", True)):
        known = [suite.identity(split, name)["tasks"][name][-1] for suite in (before, after)]  # type: ignore[arg-type]
        assert (known[0] == known[1]) == same


def test_the_control_chooses_on_images_that_are_never_tested(settings: BenchmarkSettings) -> None:
    """Where a control has test images alone, a part of them is set aside."""
    assert len(Suite(settings.models).images("control", "validation")) == 9
    only_test = (
        Path(settings.models.control)
        .read_text()
        .replace("train: train\n", "")
        .replace("validation: validation\n", "")
    )
    file = Path(settings.output).parent / "only_test.yaml"
    file.write_text(only_test)
    suite = Suite(replace(settings.models, control=str(file)))
    test, aside = suite.images("control", "test"), suite.images("control", "validation")
    assert suite.identity("train", "control")["tasks"]["control"][-1] is None
    tested = suite.identity("validation", "control")["tasks"]["control"]
    other = Suite(replace(settings.models, control=str(file), control_limit=6))
    assert tested != other.identity("validation", "control")["tasks"]["control"]
    assert (len(test), len(aside)) == (11, 1)
    # What `spared` reads of it is the part that is set aside.
    assert Suite(settings.models).scored("control") == "train"
    head, scores = file.parent / "head", file.parent / "scores"
    for folder in (head, scores):
        folder.mkdir()
    make_head(suite, "control", head)
    make_scores(suite, "control", 0, "gram", 1, None, head / HEAD, scores)
    assert load_weights(scores / SCORES)
    images = [test[index][0] for index in range(len(test))]
    assert not any(torch.equal(aside[0][0], image) for image in images)
