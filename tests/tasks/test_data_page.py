"""docs/data.md says what the code does: its table of sets, its examples of task files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sta_lightning.tasks import get_task
from sta_lightning.tasks.published import EPOCHS, PUBLISHED_TASKS, SUITES
from tests.conftest import REPOSITORY
from tests.tasks.layouts import picture
from tests.tasks.test_hub import save

PAGE = (REPOSITORY / "docs" / "data.md").read_text()
SPLITS = ("train", "validation", "test")


def rows() -> dict[str, list[str]]:
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("| `")
    ]
    return {row[0].strip("`"): row for row in cells if len(row) == 7}


def example(name: str) -> str:
    (text,) = re.findall(rf"```yaml\n(# {name}\n.*?)```", PAGE, flags=re.DOTALL)
    return str(text)


def test_table_has_every_set_with_its_classes_epochs_and_suites() -> None:
    table = rows()
    assert list(table) == list(PUBLISHED_TASKS)
    for name, (_, _, classes, _, epochs, suites, _) in table.items():
        assert int(classes.replace(" ", "")) == len(PUBLISHED_TASKS[name].class_names)
        assert epochs == str(EPOCHS.get(name, ""))
        assert suites == ", ".join(suite for suite, members in SUITES.items() if name in members)


def test_numbers_of_images_follow_from_the_split_rule() -> None:
    for name, row in rows().items():
        train, validation, _ = (int(number.replace(" ", "")) for number in row[3].split("/"))
        if not PUBLISHED_TASKS[name].own_validation:
            assert validation == min((train + validation) // 10, 5000), name


def test_tree_has_every_file_that_is_asked_for() -> None:
    tree = PAGE.split("```\n", 1)[1].split("```", 1)[0]
    for task in PUBLISHED_TASKS.values():
        opener: Any = task.opener
        for files in opener.files.values():
            assert all(file.split("/")[0] in tree for file in files), task.name
        listed = f"| `{task.name}` | " in PAGE.split("## Files")[1]
        assert listed == (task.downloader is None), task.name


def test_examples_work(tmp_path: Path) -> None:
    for split in SPLITS[::2]:
        for folder in ("n01", "n02", "unused"):
            for number in range(3):
                picture(tmp_path / "images" / split / folder / f"{number}.jpg")
    (tmp_path / "birds.yaml").write_text(example("birds.yaml"))
    birds = get_task(str(tmp_path / "birds.yaml"))
    assert birds.class_names == ("barn owl", "kingfisher")
    assert len(birds.dataset("test")) == 6  # type: ignore[arg-type]

    lines = ["path,label,split"]
    lines += [
        f"{split}/n0{label + 1}/{n}.jpg,{label},{split}"
        for split in SPLITS[::2]
        for label in (0, 1)
        for n in range(3)
    ]
    (tmp_path / "birds.csv").write_text("\n".join(lines))
    (tmp_path / "table.yaml").write_text(example("table.yaml"))
    table = get_task(str(tmp_path / "table.yaml"))
    assert [len(table.dataset(split)) for split in ("train", "validation", "test")] == [5, 1, 6]  # type: ignore[arg-type]


def test_example_of_the_hub_works(tmp_path: Path) -> None:
    package = pytest.importorskip("datasets", reason="the package datasets is not installed")
    package.disable_progress_bars()
    labels = package.ClassLabel(names=["owl", "kingfisher"])
    save(package, tmp_path / "saved", labels, train=[0, 1], validation=[1, 0], test=[0, 1, 1])
    (tmp_path / "hub.yaml").write_text(example("hub.yaml"))
    task = get_task(str(tmp_path / "hub.yaml"))
    assert [len(task.dataset(split)) for split in ("train", "validation", "test")] == [2, 2, 3]  # type: ignore[arg-type]
