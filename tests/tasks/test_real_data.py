"""Real files through the same code; each test is skipped where its set is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from sta_lightning.tasks import SPLITS, get_task

DATA = Path(os.environ.get("STA_DATA", "absent"))
TASKS = Path(__file__).parents[2] / "configs" / "deit" / "tasks"


def needs(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (DATA / folder).is_dir(), reason=f"STA_DATA does not lead to {folder}")


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        pytest.param("mnist", (55000, 5000, 10000), marks=needs("MNIST")),
        pytest.param("gtsrb", None, marks=needs("gtsrb")),
        pytest.param("cifar10.yaml", None, marks=needs("cifar10_folders")),
        pytest.param("animals.yaml", None, marks=needs("tiny_imagenet_40")),
        pytest.param("household.yaml", None, marks=needs("tiny_imagenet_40")),
        pytest.param("out_and_about.yaml", None, marks=needs("tiny_imagenet_40")),
    ],
)
def test_every_class_is_in_every_split(spec: str, sizes: tuple[int, ...] | None) -> None:
    task = get_task(str(TASKS / spec) if spec.endswith(".yaml") else spec)
    opened = [cast(Any, task.dataset(split)) for split in SPLITS]
    if sizes is not None:
        assert tuple(len(data) for data in opened) == sizes
    labels = {int(opened[2][index][1]) for index in range(0, len(opened[2]), max(1, len(opened[2]) // 2000))}
    assert labels == set(range(len(task.class_names)))
    assert all(len(data) >= 100 for data in opened)


@needs("imagenet_1_per_class")
def test_control_has_one_image_a_class() -> None:
    task = get_task(str(TASKS / "imagenet_control.yaml"))
    data = cast(Any, task.dataset("test"))
    assert [data[index][1] for index in (0, 999)] == [0, 999]
    assert (data.files[0].name, data.files[999].name) == (
        "n01440764_tench.JPEG",
        "n15075141_toilet_tissue.JPEG",
    )
    assert (task.class_names[0], task.class_names[999]) == ("tench", "toilet tissue")


@needs("tiny_imagenet_40")
def test_three_groups_share_the_forty_classes() -> None:
    groups = [get_task(str(TASKS / f"{name}.yaml")) for name in ("animals", "household", "out_and_about")]
    folders = [folder for task in groups for folder in cast(Any, task.opener).classes]
    published = (DATA / "tiny_imagenet_40" / "classes.tsv").read_text().splitlines()
    assert sorted(folders) == sorted(line.split("\t")[0] for line in published)
