"""What Lightning and torch refuse of a user's settings: status 2, and the sentence that matters."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_mistakes import FIT, refused

RUN = [
    *(*FIT, "--model.pretrained=random", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    *("--data.batch_size=24", "--trainer.enable_model_summary=false", "--trainer.enable_checkpointing=false"),
]
CALLBACK = "--trainer.callbacks"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([f"{CALLBACK}=EarlyStopping", f"{CALLBACK}.monitor=val/acx"], ["EarlyStopping", "'val/acx'", "'val/acc'"]),
        ([f"{CALLBACK}=EarlyStopping", f"{CALLBACK}.monitor=val/acc", f"{CALLBACK}.mode=up"], ["EarlyStopping", "up"]),
        ([f"{CALLBACK}=LearningRateMonitor"], ["LearningRateMonitor", "logger"]),
        (["--trainer.logger=WandbLogger"], ["WandbLogger", "wandb"]),
        (["--trainer.strategy=abc"], ["abc"]),
        (["--trainer.devices=0"], ["devices"]),
        (["--trainer.accelerator=gpu"], ["gpu"]),
        (["--trainer.val_check_interval=1000"], ["val_check_interval"]),
        (["--trainer.accumulate_grad_batches=0"], ["accumulate_grad_batches", "0"]),
        (["--trainer.max_epochs=-3"], ["max_epochs"]),
        (["--trainer.limit_train_batches=2.5"], ["limit_train_batches"]),
        (["--trainer.profiler=abacus"], ["profiler", "'simple'"]),
        (["--trainer.gradient_clip_algorithm=abacus", "--trainer.gradient_clip_val=1"], ["abacus"]),
        (["--model.optimizer=SGD", "--model.optimizer.lr=-1"], ["learning rate"]),
        (["--data.num_workers=-1"], ["num_workers"]),
    ],
    ids=lambda value: value[0].removeprefix("--trainer.") + "".join(value[1:2]) if "=" in value[0] else "",
)  # fmt: skip
def test_one_sentence_and_status_2(
    words: list[str],
    expected: list[str],
    tiny_suite: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = refused([*RUN, *words], capsys)
    for part in expected:
        assert part in message
