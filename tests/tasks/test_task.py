from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from sta_lightning.errors import StaError
from sta_lightning.tasks import SPLITS, Task, get_task, register_task, registry, task_names


class Opener:
    def __init__(self) -> None:
        self.calls: list[tuple[str, Path | None]] = []

    def __call__(self, split: Any, root: Path | None) -> Dataset[Any]:
        self.calls.append((split, root))
        size = {"train": 50, "validation": 7, "test": 9}[split]
        return TensorDataset(torch.arange(size), torch.zeros(size))


def task(opener: Any = None, **settings: Any) -> Task:
    given = {"name": "toy", "class_names": ("a", "b"), "templates": ("a {}",), "opener": opener or Opener()}
    return Task(**{**given, **settings})


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})


def test_training_set_is_divided_unless_there_is_a_validation_split() -> None:
    opener = Opener()
    sizes = {split: len(cast(Any, task(opener).dataset(split, "here"))) for split in SPLITS}
    assert sizes == {"train": 45, "validation": 5, "test": 9}
    assert opener.calls == [("train", Path("here")), ("train", Path("here")), ("test", Path("here"))]
    own = task(own_validation=True)
    assert [len(cast(Any, own.dataset(split))) for split in SPLITS] == [50, 7, 9]


def test_home_folder_is_expanded() -> None:
    opener = Opener()
    task(opener).dataset("test", "~/images")
    assert opener.calls[0][1] == Path.home() / "images"


def test_missing_split_is_told() -> None:
    control = task(splits=("test",))
    with pytest.raises(StaError, match=r"'train' of the task 'toy'.*'test'"):
        control.dataset("train")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"name": "two words"}, "two words"),
        ({"name": "a/b"}, "a/b"),
        ({"name": ""}, "named ''"),
        ({"class_names": ()}, "no classes"),
        ({"templates": ()}, "templates"),
        ({"templates": ("a {}", "a photo")}, "'a photo'"),
    ],
)
def test_wrong_tasks_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(StaError, match=complaint):
        task(**settings)


def test_registered_task_is_found_and_not_replaced() -> None:
    own = register_task(task(name="mine"))
    assert get_task("mine") is own
    assert register_task(own) is own
    assert task_names()[-1] == "mine"
    with pytest.raises(StaError, match="'mine' is registered already"):
        register_task(task(name="mine"))
    with pytest.raises(StaError, match="'mnist' is registered already"):
        register_task(task(name="mnist"))


def test_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(StaError, match=r"'minst'.*'digits'.*'objects'.*'mnist'.*YAML"):
        get_task("minst")


def test_embedded_suite_is_known() -> None:
    six = ["digits", "vehicles", "street_numbers", "traffic_signs", "textures", "land_cover"]
    assert task_names()[:7] == [*six, "objects"]
    assert all(len(get_task(name).class_names) >= 10 for name in six)
