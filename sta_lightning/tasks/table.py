"""Tasks of one's own: a CSV table of image paths and labels, described by a small YAML file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sta_lightning.errors import StaError, listed
from sta_lightning.tasks.classes import LabelledClasses, decide_classes, label_key, require_every_class
from sta_lightning.tasks.images import ImageList, require_files
from sta_lightning.tasks.task import SPLITS, Split, Task
from sta_lightning.tasks.task_file import COMMON_KEYS, TaskFile

_SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
_TABLE_EACH = " Or give a table for each split: `csv: {train: ..., test: ...}`."


class Row(NamedTuple):
    """An image in a table: line number in the file, path, label and split as they are meant."""

    line: int
    path: str
    label: str
    split: Split


def load_table_task(file: TaskFile) -> Task:
    """Make a task of a YAML file with the key ``csv``.

    Its keys, besides those that all kinds know (docs/data.md):

    - ``csv``: a table with the columns ``path``, ``label`` and ``split`` (``train``, ``validation``
      or ``val``, ``test``), or a mapping from splits to tables with ``path`` and ``label``. Further
      columns are not looked at. Tables are looked for beside the YAML file.
    - ``class_names``: see ``decide_classes``.

    Raises:
        StaError: that says what is wrong with the file or a table, and in which line.
    """
    file.only((*COMMON_KEYS, "csv"))
    tables = _tables(file)
    rows = list(read_rows(tables))
    where = listed((str(path) for _, path in tables), limit=3)
    given = {row.split for row in rows}
    if rows and "test" not in given:
        raise StaError(f"{where} has no test images: give some rows the split `test`.")
    classes = decide_classes(file, (row.label for row in rows), where)
    return file.task(classes.names, TableOpener(file, tables, classes), given)


def _tables(file: TaskFile) -> tuple[tuple[Split | None, Path], ...]:
    value = file.settings["csv"]
    written = file.mapping("csv") if isinstance(value, dict) else {"": value}
    tables: list[tuple[Split | None, Path]] = []
    for split, name in written.items():
        if not isinstance(name, str) or (split and split not in SPLITS):
            raise StaError(
                f"{file.path}: `csv` should be a file, or a mapping from {listed(SPLITS)} to files; it says {value!r}."
            )
        path = file.path.absolute().parent / Path(os.path.expandvars(name)).expanduser()
        if not path.is_file():
            raise StaError(
                f"The table {path} of {file.path} was asked for, but there is no such file: mend `csv`."
            )
        tables.append((_SPLIT_WORDS[split] if split else None, path))
    return tuple(tables)


def read_rows(tables: tuple[tuple[Split | None, Path], ...]) -> Iterator[Row]:
    """Read files row by row, each with the split of all its images where its rows do not say.

    Raises:
        StaError: that names file and line.
    """
    seen: dict[str, str] = {}
    for split, path in tables:
        for row in _read_table(path, split):
            here = f"{path}, line {row.line}"
            if row.path in seen:
                raise StaError(
                    f"{here}: the image {row.path} was listed before ({seen[row.path]}). Each image belongs to one split and "
                    "one class: keep one of the two lines."
                )
            seen[row.path] = here
            yield row


def _read_table(path: Path, fixed: Split | None) -> Iterator[Row]:
    try:
        # A mark in front of the text, as spreadsheets write it, would otherwise be part of the
        # first column's name.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            needed = ["path", "label", *([] if fixed else ["split"])]
            missing = [name for name in needed if name not in columns]
            if missing:
                raise StaError(
                    f"{path}: the first line should name the columns {listed(needed)}; it has {listed(columns)}. Missing: "
                    f"{listed(missing)}.{_TABLE_EACH if 'split' in missing else ''}"
                )
            for cells in reader:
                yield _row(f"{path}, line {reader.line_num}", reader.line_num, cells, fixed)
    except (csv.Error, UnicodeDecodeError) as error:
        raise StaError(
            f"{path} is not a table in CSV (text in UTF-8, commas between the columns): {error}."
        ) from error


def _row(where: str, line: int, cells: dict[str | None, str | None], fixed: Split | None) -> Row:
    values = {name: (cells.get(name) or "").strip() for name in ("path", "label", "split")}
    empty = [name for name in ("path", "label") if not values[name]]
    if empty:
        raise StaError(f"{where}: {listed(empty)} is empty. Each line needs an image's path and its label.")
    if None in cells:
        raise StaError(
            f"{where}: there are more cells than columns. Put a path or label with a comma into quotes."
        )
    written = values["split"]
    split = _SPLIT_WORDS.get(written.lower()) if written or fixed is None else fixed
    if split is None or (fixed is not None and split != fixed):
        expected = f"`{fixed}`, as the task file says of this table" if fixed else "train, validation or test"
        raise StaError(f"{where}: the split is '{written}'; it should be {expected}.")
    return Row(line, values["path"], values["label"], split)


@dataclass(frozen=True)
class TableOpener:
    """Opens a split of tables; ``classes`` are the labels that they may have."""

    file: TaskFile
    tables: tuple[tuple[Split | None, Path], ...]
    classes: LabelledClasses

    def __call__(self, split: Split, root: Path | None) -> ImageList:
        """Open a split; every class needs images in it, and every file must be there."""
        folder = self.file.folder(root)
        numbers = self.classes.numbers()
        files, labels = [], []
        for row in read_rows(self.tables):
            label = numbers.get(label_key(row.label))
            if label is None:
                raise StaError(
                    f"The tables of {self.file.path} have changed: line {row.line} has the label '{row.label}', which was not "
                    "there when the task was read. Start again."
                )
            if row.split == split:
                files.append(folder / Path(row.path).expanduser())
                labels.append(label)
        where = listed((str(path) for _, path in self.tables), limit=3)
        require_every_class(split, labels, self.classes.names, self.file.path, where)
        require_files(
            files,
            f"The {split} images that {where} lists",
            "Paths in a table are below `root` (by default the folder of the task's YAML file): mend it, or the table.",
        )
        return ImageList(files, labels)

    def fingerprint(self, split: Split, root: Path | None) -> str:
        """Digest of the split's files (names, sizes, times of change) and labels."""
        return self(split, root).fingerprint()
