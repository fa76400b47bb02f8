"""What the README prints works, and it stays one page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sta_lightning.cli.main import main
from sta_lightning.weights import load_weights, save_weights
from tests.command_lines import documented
from tests.conftest import REPOSITORY
from tests.weights.formats.tiny import moved, tiny_clip

README = (REPOSITORY / "README.md").read_text()
LINES = documented(README)


def test_it_is_one_page() -> None:
    assert len(README.splitlines()) <= 120
    assert max(map(len, README.splitlines())) <= 100
    assert (
        max(len(table.splitlines()) - 2 for table in re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)) <= 10
    )


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README)
    missing = [link for link in links if not link.startswith("http") and not (REPOSITORY / link).exists()]
    assert links
    assert not missing


def test_three_files_become_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STA_CACHE", str(tmp_path / "cache"))
    clip = tiny_clip()
    save_weights("base.safetensors", clip.state_dict())
    for seed, name in enumerate(("cars", "dogs"), 1):
        save_weights(f"{name}.safetensors", moved(tiny_clip(), seed).state_dict())
    run = [words for words in LINES if words[0] in ("merge", "forget") and "--config" not in words]
    assert [words[0] for words in run] == ["merge", "forget"]
    for words in run:
        assert main(words) == 0, capsys.readouterr().err
    assert load_weights("rest.safetensors").keys() == clip.state_dict().keys()
    # Files and the output apart, a person types a line of a few characters.
    merge = " ".join(("sta", *run[0]))
    assert len(re.sub(r"\S+\.safetensors", "", merge)) < 60


def test_the_methods_it_counts_are_those_that_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    rows = re.findall(r"^  [a-z_]+  ", capsys.readouterr().out, re.MULTILINE)
    (others,) = re.findall(r"\(STA\)\s+or\s+one\s+of\s+(\d+)\s+other\s+methods", README)
    assert len({row.strip() for row in rows} - {"name"}) == 1 + int(others)


def test_its_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, object] = {}
    exec(code, scope)  # the README's own
    assert capsys.readouterr().out == "tensor([2., 1., 0.])\n"
