"""The shipped settings parse, and the demo's file says what the demo does."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from sta_lightning.cli import demo
from sta_lightning.cli.settings import build_parser
from sta_lightning.errors import StaError
from sta_lightning.experiment import ExperimentSettings, expand_settings

ROOT = Path(__file__).parents[2]


def load(path: Path, *words: str) -> ExperimentSettings:
    parser = build_parser("demo", demo.DESCRIPTION, ExperimentSettings, demo.FLAGS)
    values = parser.parse_args([f"--config={path}", *words])
    built = parser.instantiate_classes(values).as_dict()
    return ExperimentSettings(**{field.name: built[field.name] for field in fields(ExperimentSettings)})


def test_the_demo_file_spells_out_the_defaults() -> None:
    assert load(ROOT / "configs/demo/miniature.yaml") == ExperimentSettings()


def test_the_deit_file_parses_and_names_files_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STA_DATA", "/somewhere")
    settings = expand_settings(load(ROOT / "configs/deit/chain.yaml"))
    assert settings.pretrained == "/somewhere/deit_tiny/deit_tiny_patch16_224.safetensors"
    assert len(settings.tasks) == 6
    for spec in (*settings.tasks, settings.control):
        assert not spec.endswith(".yaml") or (ROOT / spec).is_file()


def test_a_variable_that_is_not_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STA_DATA", raising=False)
    with pytest.raises(StaError, match="STA_DATA"):
        expand_settings(load(ROOT / "configs/deit/chain.yaml"))


def test_overrides_of_one_task_reach_its_fine_tuning(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({"epochs": 3, "overrides": {"digits": {"epochs": 7, "train_limit": 50}}}))
    settings = load(path, "--batch_size=16")
    assert (settings.fine_tuning("digits").epochs, settings.fine_tuning("digits").train_limit) == (7, 50)
    assert (settings.fine_tuning("textures").epochs, settings.fine_tuning("digits").batch_size) == (3, 16)


def test_settings_are_imported_without_torch() -> None:
    code = "import sys, sta_lightning.experiment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
