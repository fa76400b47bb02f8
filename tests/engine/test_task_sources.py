"""Where the files of a merge's tasks lie: stated for all, for one, or both."""

import pytest

from sta_lightning.engine import FusionOptions, TaskSource
from sta_lightning.errors import StaError

SHARED = TaskSource("runs/{task}/encoder", head="heads/{task}")


def test_names_take_the_shared_files() -> None:
    found = FusionOptions(["b", "a"], files=SHARED).sources
    assert list(found.items()) == [
        ("b", TaskSource("runs/b/encoder", head="heads/b")),
        ("a", TaskSource("runs/a/encoder", head="heads/a")),
    ]


def test_a_task_s_own_files_go_before_the_shared_ones() -> None:
    own = {"a": TaskSource(head="mine"), "b": {"finetuned": "other", "gram": "g"}}
    found = FusionOptions(own, files=SHARED).sources
    assert found == {
        "a": TaskSource("runs/a/encoder", head="mine"),
        "b": TaskSource("other", head="heads/b", gram="g"),
    }


def test_a_task_is_merged_once() -> None:
    with pytest.raises(StaError, match="'a', 'b', 'a' have one twice"):
        FusionOptions(["a", "b", "a"], files=SHARED).job()
