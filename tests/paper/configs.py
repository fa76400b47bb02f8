"""The files of configs/paper, and the commands that their first lines give."""

from __future__ import annotations

from typing import Any

import yaml

from tests.conftest import REPOSITORY

PAPER = REPOSITORY / "configs" / "paper"
FILES = {file.relative_to(PAPER).with_suffix("").as_posix(): file for file in sorted(PAPER.rglob("*.yaml"))}
RUNS = [name for name in FILES if not name.startswith("common/")]
"""Names of the runs, such as ``finetune/mnist``; the other files are parts that runs share."""


def command(name: str) -> list[str]:
    """The words after ``sta`` in the comment of a file; paths are relative to the repository."""
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    (found,) = [line for line in lines if line.startswith("#   sta ")]
    return found.split()[2:]


def merged(name: str) -> dict[str, Any]:
    """What the files of a run's command say together; a later file's scalars and lists replace an earlier one's."""
    found: dict[str, Any] = {}
    for word in command(name):
        if word.endswith(".yaml"):
            _update(found, yaml.safe_load((REPOSITORY / word).read_text(encoding="utf-8")))
    return found


def _update(old: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            _update(old[key], value)
        else:
            old[key] = value
