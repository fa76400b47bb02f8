"""The benchmark of methods and of many tasks, small: every row runs, every verdict is there."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.benchmarks import growth, methods
from scripts.benchmarks.commands import Cost
from scripts.benchmarks.inputs import Inputs
from sta_lightning.cli.main import main


def here(command: Sequence[str], environment: object = None) -> Cost:
    """In this process what would be one of its own: ``python -m sta_lightning WORD...``."""
    words = list(command)[3:]
    assert main(words) == 0, words
    return Cost(process=2.0, busy=2.0, work=1.0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"))


def test_every_method_is_measured(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "timed", here)
    asked = Namespace(model="miniature", repetitions=1, mergekit=None, fusionbench=None, rows=[""])
    section = methods.measure(inputs, asked)
    assert [row[0] for row in section.rows] == [*methods.STREAMED, *methods.SPECTRA]
    assert all("reached" in row[-1] or "missed" in row[-1] for row in section.rows)
    assert [row[-1] for row in section.rows if row[0].startswith("cold")] == [
        "a whole process of at most 2.5 s: reached"
    ]
    assert "mergekit is not installed" in section.notes[0]
    assert "FusionBench is not installed" in section.notes[1]


def test_others_are_measured_beside_ours(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def timed(command: Sequence[str], environment: object = None) -> Cost:
        commands.append(list(command))
        ours = "sta_lightning" in command
        return Cost(process=2.0 if ours else 19.0, busy=2.0, work=1.0)

    monkeypatch.setattr(methods, "timed", timed)
    asked = Namespace(
        model="miniature", repetitions=1, mergekit="/there/mergekit-pytorch", fusionbench="py", rows=["TIES"]
    )
    section = methods.measure(inputs, asked)
    assert {row[0]: row[-1] for row in section.rows if "by" in row[0]} == {
        "TIES by mergekit": "9.5 times ours, at least 10: missed",
        "TIES by FusionBench": "9.5 times ours",
    }
    (merged,) = (command for command in commands if command[0].endswith("mergekit-pytorch"))
    assert Path(merged[1]).name == "mergekit-ties.yaml"
    (other,) = (command for command in commands if command[0] == "py")
    assert Path(other[1]).is_file()
    assert len(other) == 4 + methods.TASKS


def test_many_tasks_have_their_verdicts(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "timed", here)
    monkeypatch.setattr(growth, "private_memory", lambda *words: (100.0, 150.0))
    monkeypatch.setattr(growth, "MANY", {"miniature": (6, (2, 4, 8))})
    section = growth.many(inputs, Namespace(repetitions=1))
    assert [row[1] for row in section.rows] == ["2", "4", "8"]
    assert section.notes == [
        "Asked: 8 tasks at most 1.5 times the rate of 4 (reached: 0.50), and at most 300 MB beyond torch's own "
        "(reached: 50)."
    ]
