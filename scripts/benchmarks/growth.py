"""How time and memory grow with the number of models and with their size."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from scripts.benchmarks.commands import private_memory, sta, timed
from scripts.benchmarks.inputs import Inputs
from scripts.benchmarks.merging import LIMIT
from scripts.benchmarks.table import Section, verdict
from sta_lightning.weights import TensorFile

# Encoder: (files that are made, numbers of tasks). More tasks than files read the files again.
Sizes = dict[str, tuple[int, tuple[int, ...]]]
SIZES: Sizes = {"ViT-B-16": (6, (2, 6, 12, 20)), "ViT-L-14": (2, (2, 6, 12, 20))}
MANY: Sizes = {"miniature": (6, (2, 20, 50, 200))}
LINEAR = 1.5
"""How many times the rate of 20 models that of the most may be."""


def many(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """STA of 2 to 200 small models: linear, in little memory."""
    section, rates, memory = _grown(inputs, arguments, MANY, "Many tasks: STA fuse, files to file")
    (numbers,) = (numbers for _, numbers in MANY.values())
    ratio, most = rates[-1] / rates[1], memory[-1]
    section.notes = [
        f"Asked: {numbers[-1]} tasks at most {LINEAR} times the rate of {numbers[1]} "
        f"({verdict(ratio, LINEAR, most=True)}: {ratio:.2f}), and at most {LIMIT} MB beyond torch's own "
        f"({verdict(most, LIMIT, most=True)}: {most:.0f})."
    ]
    return section


def measure(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """STA from 2 to 20 models of real size."""
    section, rates, _ = _grown(inputs, arguments, SIZES, "Growth: STA fuse, files to file")
    section.notes = [
        f"Linear would be one rate throughout; it lies between {min(rates):.2f} and {max(rates):.2f} ns. With few models the "
        "writing of the result weighs more. Where there are more models than files, files are read several times; what is "
        "computed is not less for it.",
    ]
    return section


def _grown(
    inputs: Inputs, arguments: argparse.Namespace, sizes: Sizes, title: str
) -> tuple[Section, list[float], list[float]]:
    """The table, and its last two columns as numbers."""
    section = Section(
        title,
        (
            "encoder",
            "models",
            "the merge (s)",
            "ns per parameter and model",
            "private memory beyond torch's (MB)",
        ),
    )
    rates: list[float] = []
    memory: list[float] = []
    for encoder, (made, numbers) in sizes.items():
        files = inputs.files(encoder, made)
        with TensorFile(files.pretrained) as opened:
            parameters = sum(torch.Size(tensor.shape).numel() for tensor in opened.values())
        with tempfile.TemporaryDirectory(dir=inputs.folder) as name:
            for tasks in numbers:
                config = Path(name) / f"{tasks}.yaml"
                config.write_text(files.config(tasks, Path(name) / "fused.safetensors"))
                words = ["merge", "--config", str(config)]
                turns = [timed(sta(*words)).work for _ in range(1 + arguments.repetitions)]
                seconds = statistics.median(turns[1:])
                torch_alone, highest = private_memory(*words)
                memory.append(highest - torch_alone)
                rates.append(1e9 * seconds / parameters / tasks)
                section.add(
                    f"{encoder} ({parameters / 1e6:.1f} M)",
                    f"{tasks}",
                    f"{seconds:.2f}",
                    f"{rates[-1]:.2f}",
                    f"{memory[-1]:.0f}",
                )
    return section, rates, memory
