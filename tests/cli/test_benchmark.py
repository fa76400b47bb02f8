"""``sta benchmark``: what the command line is told, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sta_lightning.benchmark.checks import check_settings
from sta_lightning.benchmark.settings import BenchmarkSettings, ModelSettings
from sta_lightning.cli.main import main
from tests.conftest import REPOSITORY

CONFIG = str(REPOSITORY / "configs/benchmark/miniature.yaml")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, BenchmarkSettings, bool]]:
    """What would be run."""
    found: list[tuple[str, BenchmarkSettings, bool]] = []
    monkeypatch.setattr(
        "sta_lightning.benchmark.run.run_benchmark",
        lambda settings, *, force: found.append(("run", settings, force)),
    )
    monkeypatch.setattr(
        "sta_lightning.benchmark.run.dry_run",
        lambda settings: found.append(("dry", settings, False)) or "the plan",
    )
    return found


def test_a_config_and_options_over_it(asked: list[tuple[str, BenchmarkSettings, bool]]) -> None:
    words = ["--seeds=[5]", "--models.epochs=1", "--devices=1", "--force", "--curves.tasks=[2]"]
    assert main(["benchmark", "--config", CONFIG, *words]) == 0
    ((kind, settings, force),) = asked
    assert (kind, force) == ("run", True)
    assert (settings.seeds, settings.devices, settings.models.epochs) == ([5], 1, 1)
    assert settings.curves.tasks == [2]
    assert settings.methods["ties_mean"].settings["merge"] == "mean"
    assert settings.methods["task_arithmetic"].scale == 0.4


@pytest.mark.parametrize("option", ["--dry-run", "--dry_run"])
def test_a_dry_run_prints_the_plan(
    option: str,
    asked: list[tuple[str, BenchmarkSettings, bool]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["benchmark", "--config", CONFIG, option]) == 0
    assert [kind for kind, _, _ in asked] == ["dry"]
    assert capsys.readouterr().out == "the plan\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a configuration that names the methods"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", CONFIG, "--seedz=[1]"], "Did you mean 'seeds'?"),
        (["--config", CONFIG, "--devices=two"], "devices"),
        (["--config", CONFIG, "--pairs=[tiez]"], "pairs: 'tiez' is no key of methods"),
        (["--config", CONFIG, "--finetuned=runs/x"], "a path with {task} in it"),
    ],
)
def test_mistakes(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_the_demo_is_the_shipped_configuration_with_options_over_it(
    asked: list[tuple[str, BenchmarkSettings, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # outside a checkout
    (tmp_path / "mine.yaml").write_text("models: {epochs: 7, overrides: {digits: {epochs: 2}}}\n")
    assert main(["demo"]) == 0
    assert main(["demo", "--config", "mine.yaml", "--models.samples=5", "--force"]) == 0
    (_, shipped, _), (_, changed, force) = asked
    check_settings(shipped)
    assert (shipped.output, shipped.seeds) == ("runs/demo", [0])
    assert shipped.publish == {"fused.safetensors": "best", "fused_sta.safetensors": "sta_lp"}
    assert shipped.models == ModelSettings()
    assert set(shipped.methods) == {
        *("average", "task_arithmetic", "ties", "tsv", "swudi_a", "random_mask"),
        *("sta_amp", "sta_lp_amp", "sta_lp", "spectral_sta"),
    }
    assert force
    assert changed == replace(shipped, models=changed.models)
    assert (changed.models.samples, changed.models.fine_tuning("textures").epochs) == (5, 7)
    assert changed.models.fine_tuning("digits").epochs == 2


@pytest.mark.parametrize("command", ["demo", "benchmark"])
def test_help_does_not_load_torch(command: str) -> None:
    program = (
        "import sys\n"
        "from sta_lightning.cli.main import main\n"
        f"main([{command!r}, '--help'])\n"
        f"main([{command!r}, '--seedz=3'])\n"
        "print([name for name in ('torch', 'lightning', 'open_clip') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "'seeds'" in done.stderr
