"""Every kind of method, files to file, beside reading and writing the same bytes."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from scripts.benchmarks.commands import sta, timed
from scripts.benchmarks.inputs import Files, Inputs
from scripts.benchmarks.merging import TASKS, read_and_write
from scripts.benchmarks.table import Section, verdict

# What is measured: the method, its further options, and at most how many times reading and writing.
STREAMED: dict[str, tuple[str, tuple[str, ...], float]] = {
    "TIES": ("ties", (), 3),
    "PCB": ("pcb", (), 6),
    "Consensus": ("consensus", (), 3),
    "LiNeS": ("lines", (), 3),
    "task arithmetic after DARE": ("task_arithmetic", ("--model.dare=0.5",), 3),
    "TIES after DARE": ("ties", ("--model.dare=0.5",), 3),
    "sparse vectors": ("vectors", (), 3),
}
# At most so many seconds for six ViT-B/16 on two cores.
SPECTRA = {
    "TSV-M": "tsv",
    "Iso-C": "iso_c",
    "Iso-CTS": "iso_cts",
    "Spectral STA": "spectral_sta",
    "WUDI, closed": "wudi",
    "SWUDI-A": "swudi_a",
    "ACTMat": "actmat",
}
LONGEST = 60.0
WHOLE = 1.5, 1.0
"""A whole process may take so many times its merge, and so many seconds more."""


def measure(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """Median of the repetitions; what takes minutes is done once."""
    files = inputs.files(arguments.model, TASKS)
    section = Section(
        f"Methods, files to file: {TASKS} × {arguments.model}, warm page cache, cold process",
        ("what", "the merge (s)", "reading and writing its files (s)", "ratio", "whole process (s)", "asked"),
    )
    with tempfile.TemporaryDirectory(dir=inputs.folder) as name:
        folder = Path(name)
        for what, (method, options, limit) in STREAMED.items():
            words, sources = command(files, folder, method, options)
            work, bound, whole = [], [], []
            for turn in range(1 + arguments.repetitions):
                reading = read_and_write(sources, folder / "copy")
                cost = timed(sta(*words))
                if turn:  # the first round compiles, hashes and fills the page cache
                    work.append(cost.work)
                    bound.append(reading)
                    whole.append(cost.process)
            seconds, reading, process = (statistics.median(found) for found in (work, bound, whole))
            asked = f"at most {limit:g}: {verdict(seconds / reading, limit, most=True)}"
            if what == "TIES":
                most = WHOLE[0] * seconds + WHOLE[1]
                asked += f"; a whole process of at most {most:.1f} s: {verdict(process, most, most=True)}"
            section.add(
                what,
                f"{seconds:.2f}",
                f"{reading:.2f}",
                f"{seconds / reading:.2f}",
                f"{process:.2f}",
                asked,
            )
            print("  ".join(section.rows[-1]), flush=True)
        for what, method in SPECTRA.items():
            words, _ = command(files, folder, method)
            timed(sta(*command(files, folder, "average")[0]))  # hashes its sources
            cost = timed(sta(*words))
            asked = f"at most {LONGEST:g} s: {verdict(cost.work, LONGEST, most=True)}"
            section.add(what, f"{cost.work:.1f}", "", "", f"{cost.process:.1f}", asked)
            print("  ".join(section.rows[-1]), flush=True)
    return section


def command(
    files: Files, folder: Path, method: str, options: tuple[str, ...] = ()
) -> tuple[list[str], list[Path]]:
    """The words after ``sta``, and the files that are read."""
    config = folder / f"{method}.yaml"
    scores = method == "spectral_sta"
    sources = [files.pretrained, *files.finetuned, *(files.importance if scores else ())]
    config.write_text(files.config(TASKS, folder / f"{method}.safetensors", method=method, scores=scores))
    if method == "vectors":
        made = folder / "sta.yaml"
        made.write_text(files.config(TASKS, folder / "sta.safetensors"))
        timed(sta("merge", "--config", str(made), f"--model.vectors={folder / 'vectors'}"))
        vectors = [folder / "vectors" / f"task{task:02d}.safetensors" for task in range(TASKS)]
        lines = [
            *("model:", f"  encoder: {files.encoder}", f"  pretrained: {files.pretrained}"),
            *("  method: vectors", "  tasks:"),
            *(f"    task{task:02d}: {{vector: {path}}}" for task, path in enumerate(vectors)),
            *(f"output: {folder / 'vectors.safetensors'}", "evaluate: false", ""),
        ]
        config.write_text("\n".join(lines))
        sources = [files.pretrained, *vectors]
    return ["merge", "--config", str(config), *options], sources
