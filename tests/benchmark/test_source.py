"""A cell is computed again when the source that computes it changes, and only then."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import sta_lightning
from sta_lightning.benchmark.settings import BenchmarkSettings
from sta_lightning.benchmark.source import checkout, source_digest

PACKAGE = Path(sta_lightning.__file__).parent


class Copy:
    """The package in another folder, with a benchmark of three methods."""

    def __init__(self, folder: Path, settings: BenchmarkSettings) -> None:
        self.package = folder / "sta_lightning"
        shutil.copytree(PACKAGE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        self.output = folder / "run"
        models = {name: getattr(settings.models, name) for name in ("pretrained", "tasks", "control")}
        methods = {name: {"method": name} for name in ("average", "pcb")}
        config = {
            "output": str(self.output),
            "models": {**models, "epochs": 1},
            "methods": {**methods, "sta": {"method": "sta", "measure": "amp"}},
        }
        self.config = folder / "tiny.yaml"
        self.config.write_text(yaml.safe_dump(config))

    def run(self) -> None:
        subprocess.run(
            [sys.executable, "-m", "sta_lightning", "benchmark", "--config", str(self.config)],
            cwd=self.package.parent,
            env={**os.environ, "PYTHONPATH": str(self.package.parent)},
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def records(self) -> dict[str, int]:
        """Name of a step -> when it was computed."""
        steps = self.output / "seed_0/steps"
        return {
            path.parent.relative_to(steps).as_posix(): path.stat().st_mtime_ns
            for path in steps.rglob("step.json")
        }

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.package / file
        text = path.read_text()
        assert old in text, file
        path.write_text(text.replace(old, new, 1))


def test_a_changed_line_of_a_method_computes_its_cells_again_and_nothing_else(
    settings: BenchmarkSettings, tmp_path: Path
) -> None:
    copy = Copy(tmp_path / "copy", settings)
    copy.run()
    first = copy.records()
    assert {"fusion/pcb/published", "fusion/sta/published", "finetune/warm"} <= first.keys()

    copy.edit("arithmetic/fusion.py", "return masked_sum(block, ", "return 1 and masked_sum(block, ")
    copy.edit("arithmetic/baselines/pcb.py", '"""', '"""In other words: ')
    copy.edit("benchmark/evaluation.py", "def classified(", "# A comment.\ndef classified(")
    copy.edit("report/__init__.py", '"""\n', '"""\n\nDRAWN = True\n')
    copy.run()
    second = copy.records()
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == {"fusion/sta/published"}


def test_a_name_handed_on_counts_as_the_module_that_defines_it() -> None:
    scored = source_digest(["sta_lightning.callbacks.score"])
    assert scored == source_digest(["sta_lightning.callbacks.score", "sta_lightning.callbacks.gram"])
    assert scored != source_digest(["sta_lightning.callbacks.gram"])
    assert source_digest([]) == source_digest(["somebody.elses.module"])


def test_the_commit_is_that_of_the_packages_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "work/sta_lightning"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.setattr("sta_lightning.benchmark.source._FOLDER", folder)

    def git(*words: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        done = subprocess.run(
            ["git", "-C", str(folder.parent), *identity, *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert checkout() == (None, None)
    git("init")
    assert checkout() == (None, None)  # a checkout of something else
    git("add", ".")
    git("commit", "-m", "first")
    assert checkout() == (git("rev-parse", "HEAD"), True)
    (folder / "more.py").write_text("")
    assert checkout() == (git("rev-parse", "HEAD"), False)
