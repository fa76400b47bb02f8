"""Throughput of ``Trainer.fit`` beside a bare PyTorch loop over the same batches.

    python scripts/benchmarks/fit.py  # the miniature encoder, batches of 128
    python scripts/benchmarks/fit.py --encoder ViT-B-32 --batch_size 8  # random weights

Both forms have the same encoder, head, AdamW, schedule, gradient clipping and loader. The fit has
what the shipped configurations of fine-tuning have: TensorBoard and CSV loggers every ten steps,
the progress bar, the learning rate's monitor, loss and accuracy of training. The bare loop has none
of it.
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
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
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


class _Clock:
    """Adds up stretches of time: wall clock, and this process's own computing time."""

    def __init__(self) -> None:
        self.wall = self.busy = 0.0
        self._begun = (0.0, 0.0)

    def start(self) -> None:
        _wait()
        self._begun = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        _wait()
        self.wall += time.perf_counter() - self._begun[0]
        self.busy += time.process_time() - self._begun[1]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class _Turns(Callback):
    """Lets a bare loop do as many batches as the fit has just done, again and again.

    Whatever else the machine does meanwhile, it does to both. The fit's time runs from the
    beginning of one batch to that of a later one, with all that the trainer, its loggers and
    callbacks do in between.

    Args:
        bare: Each ``next`` of it trains on one batch.
        stride: Batches of a turn.
    """

    def __init__(self, bare: Iterator[None], stride: int) -> None:
        self.bare, self.stride = bare, stride
        self.fitted, self.plain = _Clock(), _Clock()
        self.batches = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx - _UNTIMED
        if done < 0:
            next(self.bare)
            return
        if done and done % self.stride == 0:
            self.fitted.stop()
            self.plain.start()
            for _ in range(self.stride):
                next(self.bare)
            self.plain.stop()
            self.batches += self.stride
        if done % self.stride == 0:
            self.fitted.start()


def _bare(module: CLIPClassifier, data: TaskDataModule) -> Iterator[None]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, head = module.encoder.to(device).train(), module.head.to(device).train()
    optimizer = AdamW(encoder.parameters(), lr=_RATE, weight_decay=_DECAY)
    loader = data.train_dataloader()
    factor = partial(warmup_cosine, warmup_steps=_WARMUP, total_steps=len(loader))
    schedule = LambdaLR(optimizer, factor)
    for images, labels in loader:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        images = data.preprocess.normalize(images)  # a trainer's loaders hand on bytes
        loss = F.cross_entropy(head(encoder(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), _CLIP)
        optimizer.step()
        schedule.step()
        yield


def _run(module: CLIPClassifier, data: TaskDataModule, folder: str) -> _Turns:
    turns = _Turns(_bare(deepcopy(module), data), stride=10 if torch.cuda.is_available() else 1)
    trainer = Trainer(
        max_epochs=1,
        devices=1,
        limit_val_batches=0,
        gradient_clip_val=_CLIP,
        log_every_n_steps=10,
        logger=[TensorBoardLogger(folder, default_hp_metric=False), CSVLogger(folder)],
        callbacks=[turns, LearningRateMonitor("step")],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # the progress bar works, but into the void
        trainer.fit(deepcopy(module), data)
    return turns


def measure(
    batches: int = 32,
    repetitions: int = 3,
    *,
    encoder: str = "miniature",
    pretrained: str | None = None,
    batch_size: int = 128,
) -> dict[str, float]:
    """Time both forms in turns, in one process.

    Args:
        batches: Batches of one run of each form, of which the first two and the last turn are not
            timed.
        repetitions: Runs of each form.
        encoder: The encoder's name.
        pretrained: Its weights; ``random`` will do.
        batch_size: Images in a batch; the images are those of the embedded task ``digits``.

    Returns:
        ``fit_seconds`` and ``bare_seconds`` per batch (medians over the repetitions, wall clock),
        ``ratio`` (median of the repetitions' ratios: 1.03 means that the fit takes 3% longer), and
        ``busy_ratio``, the same of the process's own computing time, which other programs on the
        machine disturb less.
    """
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
    module.build()
    runs: list[_Turns] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(repetitions):
            runs.append(_run(module, data, folder))
    if any(run.batches == 0 for run in runs):
        raise ValueError(f"{batches} batches are too few to time one turn of both forms")
    return {
        "fit_seconds": statistics.median(run.fitted.wall / run.batches for run in runs),
        "bare_seconds": statistics.median(run.plain.wall / run.batches for run in runs),
        "ratio": statistics.median(run.fitted.wall / run.plain.wall for run in runs),
        "busy_ratio": statistics.median(run.fitted.busy / run.plain.busy for run in runs),
    }


def main() -> None:
    """Print what ``measure`` finds, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--encoder", default="miniature")
    parser.add_argument("--pretrained", default=None)
    parser.add_argument("--batch_size", type=int, default=128)
    print(json.dumps(measure(**vars(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
