"""Tasks described by a CSV table of paths and labels."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sta_lightning.errors import StaError
from sta_lightning.tasks import TaskDataModule, get_task
from sta_lightning.tasks.classes import label_key
from tests.tasks.layouts import picture

NAMES = ("cat", "dog")
ROWS = [
    *((f"images/{number}.png", NAMES[number % 2], "train") for number in range(20)),
    *((f"images/{number}.png", NAMES[number % 2], "test") for number in range(20, 26)),
]


def table(rows: Any, header: str = "path,label,split") -> str:
    return "\n".join([header, *(",".join(str(cell) for cell in row) for row in rows)]) + "\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number in range(26):
        picture(tmp_path / "images" / f"{number}.png", (6, 5), "L" if number == 20 else "RGB")
    (tmp_path / "pets.csv").write_text(table(ROWS))
    return tmp_path


def load(folder: Path, text: str = "csv: pets.csv") -> Any:
    path = folder / "task.yaml"
    path.write_text(text)
    return get_task(str(path))


def labels(opened: Any) -> list[int]:
    return [int(opened[index][1]) for index in range(len(opened))]


def test_one_table_with_a_column_of_splits(data: Path) -> None:
    task = load(data, "{name: pets, csv: pets.csv, templates: ['a {}']}")
    assert (task.name, task.class_names, task.templates) == ("pets", NAMES, ("a {}",))
    assert [len(task.dataset(split)) for split in ("train", "validation", "test")] == [18, 2, 6]
    test = pickle.loads(pickle.dumps(task.dataset("test")))
    assert labels(test) == [0, 1, 0, 1, 0, 1]
    assert (test[0][0].mode, test[0][0].size) == ("RGB", (6, 5))


def test_a_table_for_each_split(data: Path) -> None:
    for split in ("train", "test"):
        (data / f"{split}.csv").write_text(table((row[:2] for row in ROWS if row[2] == split), "path,label"))
    (data / "val.csv").write_text(table([("images/0.png", "dog"), ("images/1.png", "cat")], "path,label"))
    kept = [row[:2] for row in ROWS[2:20]]
    (data / "train.csv").write_text(table(kept, "path,label"))
    task = load(data, "csv: {train: train.csv, validation: val.csv, test: test.csv}")
    assert [len(task.dataset(split)) for split in ("train", "validation", "test")] == [18, 2, 6]
    assert labels(task.dataset("validation")) == [1, 0]
    only = load(data, "csv: {test: test.csv}")
    assert only.splits == ("test",)


def test_validation_rows_are_the_validation_split(data: Path) -> None:
    rows = [
        (path, label, "val" if number in (3, 4) else split)
        for number, (path, label, split) in enumerate(ROWS)
    ]
    (data / "pets.csv").write_text(table(rows))
    task = load(data)
    assert [len(task.dataset(split)) for split in ("train", "validation", "test")] == [18, 2, 6]


def test_spreadsheets_mark_space_and_further_columns_do_no_harm(data: Path) -> None:
    lines = ["\ufeffpath ,id, label,split,note"]
    lines += [
        f'"{path}",{number}, {label} ,{split.upper()},"a, b"'
        for number, (path, label, split) in enumerate(ROWS)
    ]
    (data / "pets.csv").write_bytes("\r\n".join(lines).encode())
    assert labels(load(data).dataset("test")) == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("written", "class_names", "names", "expected"),
    [
        # Labels that are names: sorted, or in the order of the list.
        (("dog", "cat"), "", ("cat", "dog"), [1, 0]),
        (("black_cat", "dog"), "", ("black cat", "dog"), [0, 1]),
        (("dog", "cat"), "[dog, cat]", ("dog", "cat"), [0, 1]),
        # Numbers count from 0 in a list, and may be anything in a mapping.
        (("1", "0"), "[cat, dog]", ("cat", "dog"), [1, 0]),
        (("01", "00"), "[cat, dog]", ("cat", "dog"), [1, 0]),
        (("10", "9"), "{10: dog, 9: cat}", ("cat", "dog"), [1, 0]),
        (("n2", "n1"), "{n1: cat, n2: dog}", ("cat", "dog"), [1, 0]),
        # Names that are numbers themselves are names.
        (("7", "3"), "['3', '7']", ("3", "7"), [1, 0]),
    ],
)
def test_labels_by_name_or_number(
    written: tuple[str, str], class_names: str, names: tuple[str, ...], expected: list[int], data: Path
) -> None:
    (data / "pets.csv").write_text(
        table((row[0], written[number % 2], row[2]) for number, row in enumerate(ROWS))
    )
    task = load(data, f"{{csv: pets.csv{', class_names: ' + class_names if class_names else ''}}}")
    assert task.class_names == names
    assert labels(task.dataset("test"))[:2] == expected


def test_names_of_another_task_serve_for_numbers(data: Path) -> None:
    rows = [(path, number % 10, split) for number, (path, _, split) in enumerate(ROWS)]
    (data / "pets.csv").write_text(
        table(rows[:20] + [(row[0], n, "test") for n, row in enumerate(rows[20:])])
    )
    task = load(data, "{csv: pets.csv, class_names: cifar10}")
    assert task.class_names[3] == "cat"
    with pytest.raises(StaError, match=r"'frog', 'horse', 'ship', 'truck' .*no test image"):
        task.dataset("test")


def test_root_is_the_images_place_and_the_table_lies_beside_the_file(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (data / "pets.csv").rename(other / "pets.csv")
    monkeypatch.delenv("SOME_IMAGES", raising=False)
    task = load(other, "{csv: pets.csv, root: $SOME_IMAGES}")
    with pytest.raises(StaError, match=r"\$SOME_IMAGES.*not set"):
        task.dataset("test")
    assert len(task.dataset("test", data)) == 6
    monkeypatch.setenv("SOME_IMAGES", str(data))
    assert len(task.dataset("test")) == 6
    assert len(load(other, "{csv: pets.csv, root: ..}").dataset("test")) == 6
    with pytest.raises(StaError, match=r"6 of 6 files are not there.*`root`"):
        load(other).dataset("test")


def test_serves_a_datamodule_and_its_image_cache(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STA_CACHE", str(data / "cache"))
    load(data)
    module = TaskDataModule(str(data / "task.yaml"), batch_size=4, cache_images=True)
    module.setup("fit")
    module.setup("test")
    images, targets = next(iter(module.test_dataloader()))
    assert images.shape[0] == 4
    assert targets.tolist() == [0, 1, 0, 1]


def test_fingerprint_follows_images_and_labels(data: Path) -> None:
    task = load(data)
    first = task.fingerprint("test")
    assert task.fingerprint("test") == first
    os.utime(data / "images" / "21.png", ns=(1, 1))
    second = task.fingerprint("test")
    (data / "pets.csv").write_text(
        table([*ROWS[:-2], (ROWS[-2][0], "dog", "test"), (ROWS[-1][0], "cat", "test")])
    )
    assert len({first, second, task.fingerprint("test")}) == 3


@pytest.mark.parametrize(
    ("content", "text", "complaint"),
    [
        ("", "", "first line should name the columns 'path', 'label', 'split'; it has none"),
        ("file,label,split\n", "", "Missing: 'path'"),
        ("path,label\n", "", "Missing: 'split'.*a table for each split"),
        ("path,label,split\n", "", "there is no image in"),
        (table([*ROWS, ("images/0.png", "dog", "test")]), "", "line 28: the image images/0.png was listed before.*line 2"),
        (table([*ROWS, ("x.png", "", "test")]), "", "line 28: 'label' is empty"),
        (table([*ROWS, ("", "cat", "test")]), "", "line 28: 'path' is empty"),
        (table([*ROWS, ("x.png", "cat", "held out")]), "", "line 28: the split is 'held out'.*train, validation or test"),
        (table([*ROWS, ("x.png", "cat", "")]), "", "line 28: the split is ''"),
        (table([*ROWS, ("x.png", "cat", "test", "more")]), "", "line 28: there are more cells than columns"),
        (table(ROWS[:20]), "", "has no test images"),
        (table(ROWS), "class_names: [cat, cow]", "'dog'.*none of the 2 classes.*'cat', 'cow'"),
        (table((row[0], 1 + number % 2, row[2]) for number, row in enumerate(ROWS)), "class_names: [cat, dog]",
         "labels '2'.*none of the 2 classes.*0 to 1"),
        (table((row[0], number % 2, row[2]) for number, row in enumerate(ROWS)), "", "are numbers, '0', '1'.*`class_names`"),
        (table(ROWS), "class_names: {cat: tom, dog: tom}", "more than one class is named 'tom'"),
        (table(ROWS), "class_names: {cat: tom}", "labels 'dog'.*none of the 1 classes"),
        (table(ROWS), "class_names: {no: tom, dog: rex}", "has False.*quotes"),
        (table(ROWS), "layout: flat", "unknown keys 'layout'"),
        ('path,label,split\n"a,b', "", "not a table in CSV"),
        ("path,label,split\na\xff,b,c\n", "", "not a table in CSV.*utf-8"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_file_and_line(content: str, text: str, complaint: str, data: Path) -> None:
    (data / "pets.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(StaError, match=f"(?s){complaint}") as caught:
        load(data, f"csv: pets.csv\n{text}")
    assert str(data) in str(caught.value)


def test_mistakes_in_the_task_file_are_told(data: Path) -> None:
    for text, complaint in (
        ("csv: absent.csv", "absent.csv.*no such file: mend `csv`"),
        ("csv: [a.csv]", "should be a file, or a mapping"),
        ("csv: {exam: pets.csv}", "mapping from 'train', 'validation', 'test'"),
        ("csv: {test: pets.csv}", "line 2: the split is 'train'; it should be `test`"),
    ):
        with pytest.raises(StaError, match=complaint):
            load(data, text)


def test_missing_files_and_empty_classes_are_told_when_a_split_is_opened(data: Path) -> None:
    task = load(data)
    (data / "images" / "20.png").unlink()
    with pytest.raises(StaError, match=r"1 of 6 files are not there.*20\.png.*`root`"):
        task.dataset("test")
    (data / "pets.csv").write_text(table([*ROWS[:20], *(row for row in ROWS[20:] if row[1] == "cat")]))
    with pytest.raises(StaError, match=r"classes 'dog' .*no test image"):
        load(data).dataset("test")
    (data / "pets.csv").write_text(table([*ROWS, ("x.png", "cow", "train")]))
    with pytest.raises(StaError, match=r"line 28 has the label 'cow'.*Start again"):
        task.dataset("train")


def test_an_image_that_does_not_decode_is_named_when_met(data: Path) -> None:
    (data / "images" / "21.png").write_text("no image")
    opened = load(data).dataset("test")
    assert opened[0][1] == 0
    with pytest.raises(StaError, match=r"images/21\.png cannot be decoded: it is no image"):
        opened[1]


@given(st.integers(-(10**12), 10**12), st.integers(0, 4), st.booleans())
def test_a_number_is_the_same_label_however_it_is_written(number: int, zeros: int, spaced: bool) -> None:
    sign, digits = ("-" if number < 0 else ""), str(abs(number))
    written = f"{sign}{'0' * zeros}{digits}"
    assert label_key(f" {written} " if spaced else written) == str(number)
    assert cast(str, label_key(f"n{written}")) == f"n{written}"
