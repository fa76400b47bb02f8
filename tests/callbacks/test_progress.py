"""Progress where nothing can be redrawn: plain lines, few of them, on standard error."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from sta_lightning.benchmark.progress import bar
from sta_lightning.callbacks import progress
from sta_lightning.callbacks.progress import Lines, PlainProgress, redraws
from sta_lightning.cli.base import StaCLI
from sta_lightning.cli.main import main
from tests.conftest import REPOSITORY
from tests.toys import quiet_trainer


class Clock:
    """Time that goes on by itself, some seconds a look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss: Tensor = self.layer(batch[0]).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], index: int, dataloader_idx: int = 0) -> Tensor:
        return self.layer(batch[0])

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def images(count: int) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(torch.ones(count, 2)), batch_size=1)


def run_all(seconds: float, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of a fit, a test of two splits and a prediction, at so many seconds a look."""
    patch.setattr(progress, "time", Clock(seconds))
    plain = PlainProgress()
    trainer = quiet_trainer(callbacks=[plain], max_epochs=2, enable_progress_bar=True, num_sanity_val_steps=1)
    net = Net()
    trainer.fit(net, images(3), images(2))
    trainer.test(net, [images(2), images(1)], verbose=False)
    trainer.predict(net, images(2), return_predictions=False)
    written = capsys.readouterr()
    assert written.out == ""
    assert "\r" not in written.err
    assert written.err.isascii()
    return written.err.splitlines()


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_every_batch_of_every_loop_is_told_where_batches_take_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run_all(20.0, monkeypatch, capsys)
    told = [re.sub(r"(\d) s,? ?.*", r"\1 s", line) for line in lines]
    told = [re.sub(r", \d+ s$", "", line) for line in told]
    epochs = [
        [
            *(f"epoch {epoch}: batch {n} of 3" for n in (1, 2, 3)),
            *(f"validation: batch {n} of 2" for n in (1, 2)),
        ]
        for epoch in (1, 2)
    ]
    rest = [*(f"test: batch {n} of 3" for n in (1, 2, 3)), *(f"predict: batch {n} of 2" for n in (1, 2))]
    assert told == ["validation: batch 1 of 1", *epochs[0], *epochs[1], *rest]
    assert all(re.search(r", loss [\d.e-]+$", line) for line in lines if line.startswith("epoch"))


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_a_line_in_ten_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = 1.0
    lines = run_all(clock, monkeypatch, capsys)
    seconds = progress.time.monotonic()  # type: ignore[attr-defined]
    assert 1 <= len(lines) <= seconds / progress.SECONDS


def test_a_short_run_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("open the images", 3, unit="split") as lines:
        for _ in range(3):
            lines.update()
    assert capsys.readouterr() == ("", "")


def test_what_is_left_follows_from_what_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "time", clock := Clock(0.0))
    lines = bar("benchmark", 500, unit="image")
    assert isinstance(lines, Lines)
    lines.total -= 100  # found done
    clock.now = 20.0
    lines.update(0)
    clock.now = 30.0
    lines.update(100)
    clock.now = 39.0
    lines.update(100)
    Lines("draws", float("inf"), unit="draw").update()
    clock.now = 40.0
    lines.update(100)
    lines.close()
    assert capsys.readouterr().err.splitlines() == [
        "benchmark: image 0 of 400, 20 s",
        "benchmark: image 100 of 400, 30 s, about 90 s left",
        "benchmark: image 300 of 400, 40 s, about 13 s left",
    ]
    endless = Lines("draws", float("inf"), unit="draw")
    clock.now = 55.0
    endless.update(7)
    assert capsys.readouterr().err == "draws: draw 7, 15 s\n"


@pytest.mark.parametrize(
    ("out", "err", "term", "expected"),
    [
        (True, True, "xterm", True),
        (True, True, None, True),
        (True, True, "dumb", False),
        (False, True, "xterm", False),
        (True, False, "xterm", False),
    ],
)
def test_a_bar_is_for_terminals(
    out: bool, err: bool, term: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: out)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: err)
    if term is None:
        monkeypatch.delenv("TERM", raising=False)
    else:
        monkeypatch.setenv("TERM", term)
    assert redraws() is expected


def test_the_command_line_takes_it_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["validate", "--config", str(REPOSITORY / "configs" / "finetune" / "miniature.yaml")]
    words += ["--model.task=digits", "--model.pretrained=random", "--trainer.accelerator=cpu"]
    made: list[Any] = []
    monkeypatch.setattr(StaCLI, "_run_subcommand", lambda cli, name: made.append(cli.trainer))

    def chosen(*more: str) -> ProgressBar | None:
        assert main([*words, *more]) == 0
        found: ProgressBar | None = made[-1].progress_bar_callback
        return found

    for term in ("dumb", "xterm"):
        monkeypatch.setenv("TERM", term)
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        assert isinstance(chosen(), PlainProgress if term == "dumb" else RichProgressBar | TQDMProgressBar)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(chosen("--trainer.callbacks+=TQDMProgressBar"), TQDMProgressBar)
    assert chosen("--trainer.enable_progress_bar=false") is None
    assert not isinstance(chosen("--trainer.enable_progress_bar=true"), PlainProgress)
