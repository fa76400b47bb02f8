"""Importance of 32 samples beside one batched forward and backward pass over the same samples."""

from __future__ import annotations

import argparse

import torch

from scripts.benchmarks.inputs import Inputs
from scripts.benchmarks.probe import SAMPLES, scoring
from scripts.benchmarks.table import Section, interleaved, verdict

LIMIT = 1.4


def measure(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """On the CPU, and on a GPU if there is one."""
    section = Section(
        f"Scoring {SAMPLES} samples, {arguments.model}",
        ("device", "importance (s)", "one forward and backward (s)", "ratio", "asked"),
    )
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        times = interleaved(scoring(arguments.model, device), arguments.repetitions)
        ratio = times["score"] / times["batch"]
        section.add(
            device,
            f"{times['score']:.2f}",
            f"{times['batch']:.2f}",
            f"{ratio:.2f}",
            f"at most {LIMIT}: {verdict(ratio, LIMIT, most=True)}",
        )
    if len(devices) == 1:
        section.notes.append("There is no GPU on this machine.")
    return section
