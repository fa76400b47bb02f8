"""``sta demo`` hands its options to the experiment."""

import subprocess
import sys
from pathlib import Path

import pytest

from sta_lightning import experiment
from sta_lightning.cli.main import main
from sta_lightning.experiment import ExperimentSettings


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ExperimentSettings, bool]]:
    """What the experiment has been asked for, in place of running it."""
    found: list[tuple[ExperimentSettings, bool]] = []
    monkeypatch.setattr(experiment, "run", lambda settings, *, force: found.append((settings, force)))
    return found


def test_without_options_the_defaults(asked: list[tuple[ExperimentSettings, bool]]) -> None:
    assert main(["demo"]) == 0
    assert asked == [(ExperimentSettings(), False)]


def test_configs_stack_words_win_and_variables_are_replaced(
    asked: list[tuple[ExperimentSettings, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STA_TEST_FOLDER", str(tmp_path))
    (tmp_path / "a.yaml").write_text("p: 0.1\nepochs: 7\noverrides: {digits: {epochs: 2}}\n")
    (tmp_path / "b.yaml").write_text("p: 0.2\n")
    configs = ["--config", str(tmp_path / "a.yaml"), f"--config={tmp_path / 'b.yaml'}"]
    assert main(["demo", *configs, "--samples=5", "--output=${STA_TEST_FOLDER}/out", "--force"]) == 0
    ((settings, force),) = asked
    assert force
    assert (settings.p, settings.epochs, settings.samples) == (0.2, 7, 5)
    assert settings.fine_tuning("digits").epochs == 2
    assert settings.output == f"{tmp_path}/out"


def test_help_does_not_load_torch() -> None:
    program = (
        "import sys\n"
        "from sta_lightning.cli.main import main\n"
        "main(['demo', '--help'])\n"
        "main(['demo', '--epocs=3'])\n"
        "print([name for name in ('torch', 'lightning', 'open_clip') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "'epochs'" in done.stderr
