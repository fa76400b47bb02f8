"""Throughput of ``CLIPClassifier`` under ``Trainer.fit``, beside a bare PyTorch loop over the same batches.

    python scripts/benchmarks/fit.py                                    # the miniature encoder, batches of 128
    python scripts/benchmarks/fit.py --encoder ViT-B-32 --batch_size 8  # random weights

Both forms have the same encoder, head, AdamW, schedule, gradient clipping and loader. The fit has what the shipped
configurations of fine-tuning have: TensorBoard and CSV loggers every ten steps, the progress bar, the learning rate's monitor,
loss and accuracy of training. The bare loop has none of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
import warnings
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from sta_lightning.modules import CLIPClassifier
from sta_lightning.modules.schedule import warmup_cosine
from sta_lightning.tasks import TaskDataModule

_RATE, _DECAY, _WARMUP, _CLIP = 1e-5, 0.1, 500, 1.0
_UNTIMED = 2  # the first batches of each run allocate memory and open files


class _Clock(Callback):
    """Times the batches of an epoch after the first few: wall clock and this process's computing time."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.wall = self.busy = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == _UNTIMED:
            self.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop()

    def start(self) -> None:
        _wait()
        self.wall, self.busy = -time.perf_counter(), -time.process_time()

    def stop(self) -> None:
        _wait()
        self.wall = (self.wall + time.perf_counter()) / (self.last - _UNTIMED)
        self.busy = (self.busy + time.process_time()) / (self.last - _UNTIMED)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _fit(module: CLIPClassifier, data: TaskDataModule, batches: int, folder: Path) -> _Clock:
    clock = _Clock(batches)
    trainer = Trainer(
        max_epochs=1,
        devices=1,
        limit_val_batches=0,
        gradient_clip_val=_CLIP,
        log_every_n_steps=10,
        logger=[TensorBoardLogger(folder, default_hp_metric=False), CSVLogger(folder)],
        callbacks=[clock, LearningRateMonitor("step")],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # the progress bar works, but into the void
        trainer.fit(module, data)
    return clock


def _bare(module: CLIPClassifier, data: TaskDataModule, batches: int) -> _Clock:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, head = module.encoder.to(device).train(), module.head.to(device).train()
    optimizer = AdamW(encoder.parameters(), lr=_RATE, weight_decay=_DECAY)
    factor = partial(warmup_cosine, warmup_steps=_WARMUP, total_steps=batches)
    schedule = LambdaLR(optimizer, factor)
    clock = _Clock(batches)
    for index, (images, labels) in enumerate(data.train_dataloader()):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if index == _UNTIMED:
            clock.start()
        loss = F.cross_entropy(head(encoder(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), _CLIP)
        optimizer.step()
        schedule.step()
    clock.stop()
    return clock


def measure(
    batches: int = 30,
    repetitions: int = 5,
    *,
    encoder: str = "miniature",
    pretrained: str | None = None,
    batch_size: int = 128,
) -> dict[str, float]:
    """Time both forms in turn, in one process.

    Args:
        batches: Batches of one run, of which the first two are not timed.
        repetitions: Runs of each form.
        encoder: The encoder's name.
        pretrained: Its weights; ``random`` will do.
        batch_size: Images in a batch; the images are those of the embedded task ``digits``.

    Returns:
        ``fit_seconds`` and ``bare_seconds`` per batch (medians, wall clock), ``ratio`` (median of the ratios of
        neighbouring runs: 1.03 means that the fit takes 3% longer), and ``busy_ratio``, the same of the process's own
        computing time, which other programs on the machine do not disturb.
    """
    if batches <= _UNTIMED or repetitions < 1:
        raise ValueError(f"batches must be more than {_UNTIMED} and repetitions 1 or more")
    data = TaskDataModule(
        "digits",
        encoder=encoder,
        pretrained=pretrained,
        batch_size=batch_size,
        train_limit=batches * batch_size,
    )
    module = CLIPClassifier(
        encoder,
        "digits",
        pretrained,
        learning_rate=_RATE,
        weight_decay=_DECAY,
        warmup_steps=_WARMUP,
    )
    batches = min(batches, len(data.train_dataloader()))
    module.build()
    pairs: list[tuple[_Clock, _Clock]] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(repetitions):
            copies = deepcopy(module), deepcopy(module)
            if turn % 2:  # neither form is always the first
                bare = _bare(copies[1], data, batches)
                fitted = _fit(copies[0], data, batches, Path(folder))
            else:
                fitted = _fit(copies[0], data, batches, Path(folder))
                bare = _bare(copies[1], data, batches)
            pairs.append((fitted, bare))
    return {
        "fit_seconds": statistics.median(fitted.wall for fitted, _ in pairs),
        "bare_seconds": statistics.median(bare.wall for _, bare in pairs),
        "ratio": statistics.median(fitted.wall / bare.wall for fitted, bare in pairs),
        "busy_ratio": statistics.median(fitted.busy / bare.busy for fitted, bare in pairs),
    }


def main() -> None:
    """Print what ``measure`` finds, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--encoder", default="miniature")
    parser.add_argument("--pretrained", default=None)
    parser.add_argument("--batch_size", type=int, default=128)
    print(json.dumps(measure(**vars(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
