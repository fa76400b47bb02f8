"""Importance of 32 samples beside one batched forward and backward pass over the same samples."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from scripts.benchmarks.inputs import Inputs
from scripts.benchmarks.table import Section, interleaved, verdict
from sta_lightning.arithmetic.gradients import gradient_sums
from sta_lightning.encoders import build_encoder

SAMPLES, CLASSES = 32, 10


def measure(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """On the CPU, and on a GPU if there is one."""
    section = Section(
        f"Scoring {SAMPLES} samples, {arguments.model}",
        ("device", "importance (s)", "one forward and backward (s)", "ratio", "asked"),
    )
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        torch.manual_seed(0)
        encoder = build_encoder(arguments.model, "random").eval()
        size, width = encoder.image_size, encoder.output_dim
        model = nn.Sequential(encoder, nn.Linear(width, CLASSES)).to(device)
        images = torch.randn(SAMPLES, 3, *(size if isinstance(size, tuple) else (size, size)), device=device)
        targets = torch.randint(CLASSES, (SAMPLES,), device=device)
        names = [name for name, _ in model.named_parameters() if name.startswith("0.")]

        def score(model: nn.Module = model, images=images, targets=targets, names=names) -> None:  # type: ignore[no-untyped-def]
            gradient_sums(model, F.cross_entropy, images, targets, names=names)
            _wait()

        def batch(model: nn.Module = model, images=images, targets=targets) -> None:  # type: ignore[no-untyped-def]
            model.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), targets).backward()
            _wait()

        times = interleaved({"score": score, "batch": batch}, arguments.repetitions)
        ratio = times["score"] / times["batch"]
        section.add(
            device,
            f"{times['score']:.2f}",
            f"{times['batch']:.2f}",
            f"{ratio:.2f}",
            f"at most 1.4: {verdict(ratio, 1.4, most=True)}",
        )
    if len(devices) == 1:
        section.notes.append("There is no GPU on this machine.")
    return section


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
