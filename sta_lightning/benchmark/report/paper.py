"""The numbers of the paper's Tables 2 and 3, to stand beside measured ones of the same data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

AVERAGE = "average"


@cache
def _tables() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("paper.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def encoder() -> str:
    """The encoder of the paper's tables."""
    return str(_tables()["encoder"])


def column(task: str) -> str | None:
    """The paper's name of a task's data set; ``None`` if the paper has it not."""
    name: str | None = _tables()["tasks"].get(task)
    return name


def covers(tasks: Sequence[str]) -> bool:
    """Whether these are exactly the paper's six data sets, in any order."""
    return {column(task) for task in tasks} == set(_tables()["tasks"].values())


def fusion(row: str | None, task: str, tasks: Sequence[str]) -> float | None:
    """Test accuracy in percent of a row of Table 2, on one task or on ``"average"``.

    ``tasks`` were fused here; the paper's average is that of its six data sets.
    """
    table = _tables()["fusion"]
    name = (AVERAGE if covers(tasks) else None) if task == AVERAGE else column(task)
    if row not in table["rows"] or name is None:
        return None
    return float(table["rows"][row][table["columns"].index(name)])


def forgetting(row: str | None, task: str, side: str, tasks: Sequence[str], control: str) -> float | None:
    """Test accuracy in percent of a row of Table 3, where a task (or ``"average"``) was forgotten.

    ``side`` is ``target``, that task, or ``control``; ``tasks`` were forgotten here, and
    ``control`` is the control set here (the paper's is ImageNet).
    """
    name = (AVERAGE if covers(tasks) else None) if task == AVERAGE else column(task)
    if name is None or (side == "control" and control != _tables()["control"]):
        return None
    pair = _tables()["forgetting"][name].get(row)
    return None if pair is None else float(pair[0 if side == "target" else 1])
