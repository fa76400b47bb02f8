"""``sta methods``: the table, one method, one of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sta_lightning.arithmetic import FORGET_METHODS, FUSION_METHODS, settings_of
from sta_lightning.arithmetic.registry import LEARNED_METHODS
from sta_lightning.cli.main import main


def test_every_method_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in [*FUSION_METHODS, *FORGET_METHODS, *LEARNED_METHODS]:
        assert any(line.split()[:1] == [name] for line in lines), name
    (regmean,) = (line for line in lines if line.startswith("  regmean "))
    assert "unlabelled samples" in regmean
    assert "Jin et al. 2023" in regmean


@pytest.mark.parametrize("name", [*FUSION_METHODS, *FORGET_METHODS, *LEARNED_METHODS])
def test_one_method_and_its_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", name]) == 0
    text = capsys.readouterr().out
    for methods in (FUSION_METHODS, FORGET_METHODS):
        if name in methods:
            assert all(f"  {setting} = " in text for setting in settings_of(methods[name]))


def test_the_papers_table_of_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--table"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {words[0]: words[1:7] for words in lines if len(words) > 6}
    assert rows.keys() >= {*FUSION_METHODS, *FORGET_METHODS, *LEARNED_METHODS}
    # forgetting, fusion, coefficient, test data, labels: as the paper's Table 1 has them.
    assert rows["task_arithmetic"][:5] == ["yes", "yes", "yes", "no", "no"]
    assert rows["ties"][:5] == ["no", "yes", "yes", "no", "no"]
    assert rows["adamerging"][1:4] == ["yes", "no", "yes"], "it learns its coefficients on the test data"
    assert rows["swudi_a"][1:5] == ["yes", "no", "no", "no"]
    assert rows["pcb"][:5] == ["no", "yes", "yes", "no", "no"]
    assert rows["sta"][:5] == ["yes", "yes", "no", "no", "yes"]
    for name, row in rows.items():
        if name in FUSION_METHODS:
            assert 0 <= float(row[5]) < 600, name


def test_one_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        'def mine(pretrained, deltas, scale=0.5):\n    "All of it."\n    return scale * deltas.sum(0)\n'
    )
    assert main(["methods", f"{file}:mine"]) == 0
    text = capsys.readouterr().out
    assert "All of it." in text
    assert "scale = 0.5" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "method 'nope' is unknown"),
        (["ties", "pcb"], "takes one name, --table or none"),
        (["--all"], "takes one name, --table or none"),
        (["nowhere.py:mine"], "there is no file 'nowhere.py'"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
