"""An interrupted fine-tuning ends with the weights of an unbroken one, bit for bit."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sta_lightning import load_weights
from sta_lightning.benchmark.finetuning import RESUME_FILE, fine_tune
from sta_lightning.benchmark.images import Suite
from sta_lightning.benchmark.progress import quiet
from sta_lightning.benchmark.run import run_benchmark
from sta_lightning.benchmark.settings import BenchmarkSettings, ModelSettings
from sta_lightning.modules import CLIPClassifier


@pytest.fixture
def head(toy_models: ModelSettings, tmp_path: Path) -> Path:
    from sta_lightning.encoders import make_head
    from sta_lightning.tasks import get_task

    path = tmp_path / "head.safetensors"
    make_head("miniature", get_task(toy_models.tasks[0]), pretrained=toy_models.pretrained).save(path)
    return path


class Interrupt:
    """Raises in the third epoch's second training step, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.armed = True
        original = CLIPClassifier.training_step

        def step(module: CLIPClassifier, batch: Any, batch_idx: int) -> Any:
            if self.armed and module.current_epoch == 2 and batch_idx == 1:
                self.armed = False
                raise KeyboardInterrupt
            return original(module, batch, batch_idx)

        monkeypatch.setattr(CLIPClassifier, "training_step", step)


def test_resumed_equals_unbroken(
    toy_models: ModelSettings, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = Suite(replace(toy_models, epochs=4))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    handler = signal.getsignal(signal.SIGINT)
    with quiet():
        whole.mkdir()
        expected = fine_tune(suite, "warm", 0, head, whole, tmp_path / "runs")
        broken.mkdir()
        Interrupt(monkeypatch)
        # Lightning turns the interrupt into an orderly end.
        with pytest.raises(SystemExit):
            fine_tune(suite, "warm", 0, head, broken, tmp_path / "runs2")
        signal.signal(signal.SIGINT, handler)
        assert (broken / RESUME_FILE).is_file()
        assert not (broken / "encoder.safetensors").exists()
        checkpoint = torch.load(broken / RESUME_FILE, weights_only=True)
        assert checkpoint["global_step"] == 2 * 2  # two epochs of two steps were finished
        found = fine_tune(suite, "warm", 0, head, broken, tmp_path / "runs2")
    assert found == expected
    first, second = (load_weights(folder / "encoder.safetensors") for folder in (whole, broken))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    start = load_weights(Path(str(toy_models.pretrained)))
    assert any(not torch.equal(first[name], start[name]) for name in first)
    assert not (broken / RESUME_FILE).exists()
    # What was logged before the interruption is still there, and what came after it.
    assert {p.name for p in (tmp_path / "runs2" / "finetune" / "warm").rglob("metrics.csv")} == {
        "metrics.csv"
    }
    assert len(list((tmp_path / "runs2" / "finetune" / "warm").rglob("metrics.csv"))) == 2


def test_an_interrupted_run_says_how_to_go_on_and_leaves_ctrl_c_alive(
    settings: BenchmarkSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    Interrupt(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(replace(settings, models=replace(settings.models, epochs=4)))
    assert signal.getsignal(signal.SIGINT) is handler
    shown = capsys.readouterr().out.strip().splitlines()
    assert shown[-1] == (
        f"Interrupted. What is done is kept in {settings.output}; the same command goes on from there."
    )
    finetune = Path(settings.output) / "seed_0" / "steps" / "finetune"
    (partial,) = finetune.iterdir()
    assert partial.name.startswith("warm.")
    assert (partial / RESUME_FILE).is_file()
