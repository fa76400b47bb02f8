"""Labels as they are written in a table or a data set, and the classes that they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sta_lightning.errors import StaError, listed
from sta_lightning.tasks.task_file import TaskFile

_INTEGER = re.compile(r"[+-]?\d+")


def label_key(written: object) -> str:
    """Return a label as labels are compared: without space around; ``07`` is 7."""
    text = str(written).strip()
    return str(int(text)) if _INTEGER.fullmatch(text) else text


@dataclass(frozen=True)
class LabelledClasses:
    """A task's labels in order, as ``label_key`` gives them, and the names that they stand for."""

    keys: tuple[str, ...]
    names: tuple[str, ...]

    def numbers(self) -> dict[str, int]:
        """Return the number of each label."""
        return {key: number for number, key in enumerate(self.keys)}


def decide_classes(file: TaskFile, found: Iterable[object], where: str) -> LabelledClasses:
    """Tell what the labels of a data set stand for.

    ``class_names`` may be a mapping from labels to names (classes in the order of the labels:
    numbers by size, texts sorted), a list or the name of a task with the same classes (the labels
    are these names, or their numbers from 0), or missing (the labels are the names, sorted).

    Args:
        file: The task's file.
        found: All labels of all splits, as they are written.
        where: Where they are written, for messages.

    Raises:
        StaError: if there are none, if numbers have no names, or if labels and names disagree.
    """
    keys = {label_key(label) for label in found}
    if not keys:
        raise StaError(f"{file.path}: there is no image in {where}.")
    mapping = {label_key(label): name for label, name in file.mapping("class_names").items()}
    names = file.names()
    numeric = all(map(_INTEGER.fullmatch, keys))
    if mapping:
        order = sorted(mapping, key=int if all(map(_INTEGER.fullmatch, mapping)) else None)
        classes = LabelledClasses(tuple(order), tuple(mapping[key] for key in order))
    elif names and numeric and not keys <= {label_key(name) for name in names}:
        classes = LabelledClasses(tuple(str(number) for number in range(len(names))), names)
    elif names:
        classes = LabelledClasses(tuple(label_key(name) for name in names), names)
    elif numeric:
        raise StaError(
            f"The labels in {where} are numbers, {listed(sorted(keys, key=int))}, and {file.path} gives them no names: list "
            "them in `class_names`, from number 0 on."
        )
    else:
        classes = LabelledClasses(tuple(sorted(keys)), tuple(key.replace("_", " ") for key in sorted(keys)))
    outside = sorted(keys - set(classes.keys))
    # Two classes of one name are refused with the names.
    if outside and len(set(classes.keys)) == len(classes.keys):
        numbered = classes.keys == tuple(str(number) for number in range(len(classes.keys)))
        can = f"0 to {len(classes.keys) - 1}" if numbered else listed(classes.keys, limit=10)
        raise StaError(
            f"The labels {listed(outside)} in {where} are none of the {len(classes.keys)} classes of {file.path}; a label can be "
            f"{can}. Mend the labels, or `class_names`."
        )
    return classes


def require_every_class(
    split: str, labels: Iterable[int], names: tuple[str, ...], source: object, where: str
) -> None:
    """Refuse a split in which a class has no image.

    Raises:
        StaError: that names the classes.
    """
    present = set(labels)
    empty = [name for number, name in enumerate(names) if number not in present]
    if empty:
        raise StaError(
            f"The classes {listed(empty)} of {source} have no {split} image in {where}: add some, or take the classes out of "
            "`class_names`."
        )
