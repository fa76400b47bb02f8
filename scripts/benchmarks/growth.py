"""How time and memory grow with the number of models and with their size."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from scripts.benchmarks.commands import private_memory, sta, timed
from scripts.benchmarks.inputs import Inputs
from scripts.benchmarks.table import Section
from sta_lightning.weights import TensorFile

# Encoder: (files that are made, numbers of tasks). More tasks than files read the files again.
SIZES: dict[str, tuple[int, tuple[int, ...]]] = {
    "miniature": (6, (2, 20, 50, 200)),
    "ViT-B-16": (6, (2, 6, 12, 20)),
    "ViT-L-14": (2, (2, 6, 12, 20)),
}


def measure(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """STA from 2 to 20 models, of the smallest encoder to 200."""
    section = Section(
        "Growth: STA fuse, files to file",
        (
            "encoder",
            "models",
            "the merge (s)",
            "ns per parameter and model",
            "private memory beyond torch's (MB)",
        ),
    )
    rates: list[float] = []
    for encoder, (made, numbers) in SIZES.items():
        files = inputs.files(encoder, made)
        with TensorFile(files.pretrained) as opened:
            parameters = sum(torch.Size(tensor.shape).numel() for tensor in opened.values())
        with tempfile.TemporaryDirectory(dir=inputs.folder) as name:
            for tasks in numbers:
                config = Path(name) / f"{tasks}.yaml"
                config.write_text(files.config(tasks, Path(name) / "fused.safetensors"))
                words = ["merge", "--config", str(config)]
                turns = [timed(sta(*words)).work for _ in range(1 + max(3, arguments.repetitions // 2))]
                seconds = statistics.median(turns[1:])
                torch_alone, highest = private_memory(*words)
                rates.append(1e9 * seconds / parameters / tasks)
                section.add(
                    f"{encoder} ({parameters / 1e6:.1f} M)",
                    f"{tasks}",
                    f"{seconds:.2f}",
                    f"{rates[-1]:.2f}",
                    f"{highest - torch_alone:.0f}",
                )
    section.notes = [
        f"Linear would be one rate throughout; it lies between {min(rates):.2f} and {max(rates):.2f} ns. With few models the "
        "writing of the result weighs more. Where there are more models than files, files are read several times; what is "
        "computed is not less for it.",
    ]
    return section
