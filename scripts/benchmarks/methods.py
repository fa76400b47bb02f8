"""Every kind of method, files to file, beside reading and writing the same bytes; and others."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from scripts.benchmarks.commands import sta, timed
from scripts.benchmarks.inputs import Files, Inputs
from scripts.benchmarks.merging import NO_MERGEKIT, TASKS, mergekit_command, read_and_write
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
    "cold start, task arithmetic": ("task_arithmetic", (), 3),
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
GRAM = "spectral_sta"
"""The one of these that reads Gram matrices."""
LONGEST = 60.0
WHOLE = 1.5, 1.0
"""A whole process may take so many times its merge, and so many seconds more."""
FASTER = 10
"""How many times faster than mergekit's a whole process of TIES is asked to be."""


def measure(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """Median of the repetitions; what takes minutes is done once."""
    files = inputs.files(arguments.model, TASKS)
    section = Section(
        f"Methods, files to file: {TASKS} × {arguments.model}, warm page cache, cold process",
        ("what", "the merge (s)", "reading and writing its files (s)", "ratio", "whole process (s)", "asked"),
    )

    def tell(*cells: str) -> None:
        section.add(*cells)
        print("  ".join(cells), flush=True)

    def chosen(what: str) -> bool:
        return any(word in what for word in arguments.rows)

    ours = None
    with tempfile.TemporaryDirectory(dir=inputs.folder) as name:
        folder = Path(name)
        timed(sta(*command(files, folder, "average")[0]))  # hashes the models, and fills the page cache
        for what, (method, options, limit) in STREAMED.items():
            if not chosen(what):
                continue
            words, sources = command(files, folder, method, options)
            work, bound, whole = [], [], []
            for turn in range(1 + arguments.repetitions):
                reading = read_and_write(sources, folder / "copy")
                cost = timed(sta(*words))
                if turn:  # the first round compiles
                    work.append(cost.work)
                    bound.append(reading)
                    whole.append(cost.process)
            seconds, reading, process = (statistics.median(found) for found in (work, bound, whole))
            ours = process if what == "TIES" else ours
            asked = f"at most {limit:g}: {verdict(seconds / reading, limit, most=True)}"
            if what.startswith("cold start"):
                most = WHOLE[0] * seconds + WHOLE[1]
                asked = f"a whole process of at most {most:.1f} s: {verdict(process, most, most=True)}"
            tell(
                what,
                f"{seconds:.2f}",
                f"{reading:.2f}",
                f"{seconds / reading:.2f}",
                f"{process:.2f}",
                asked,
            )
        for what, peer in peers(files, folder, arguments).items():
            if chosen(what):
                try:
                    process = timed(peer).process
                except SystemExit as failed:  # the rows of this package are told all the same
                    print(failed, file=sys.stderr)
                    tell(what, "", "", "", "failed", "")
                    continue
                asked = ""
                if ours is not None:
                    asked = f"{process / ours:.1f} times ours"
                    if "mergekit" in what:
                        asked += f", at least {FASTER}: {verdict(process / ours, FASTER, most=False)}"
                tell(what, "", "", "", f"{process:.1f}", asked)
        for what, method in SPECTRA.items():
            if chosen(what):
                if method == GRAM:
                    inputs.gram(files)
                cost = timed(sta(*command(files, folder, method)[0]))
                asked = f"at most {LONGEST:g} s: {verdict(cost.work, LONGEST, most=True)}"
                tell(what, f"{cost.work:.1f}", "", "", f"{cost.process:.1f}", asked)
    section.notes = [
        *([] if arguments.mergekit else [NO_MERGEKIT]),
        *(
            []
            if arguments.fusionbench
            else ["FusionBench is not installed here, or not named by --fusionbench."]
        ),
    ]
    return section


def peers(files: Files, folder: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """TIES by others, where they are: the words of the command."""
    found = {}
    if arguments.mergekit:
        output = folder / "mergekit-ties"
        found["TIES by mergekit"] = mergekit_command(files, folder, "ties", output, arguments.mergekit)
    if arguments.fusionbench:
        script, output = Path(__file__).with_name("fusionbench.py"), folder / "fusionbench.safetensors"
        found["TIES by FusionBench"] = [
            *(arguments.fusionbench, str(script), str(output), str(files.pretrained)),
            *map(str, files.finetuned),
        ]
    return found


def command(
    files: Files, folder: Path, method: str, options: tuple[str, ...] = ()
) -> tuple[list[str], list[Path]]:
    """The words after ``sta``, and the files that are read."""
    config = folder / f"{method}.yaml"
    sources = [files.pretrained, *files.finetuned]
    kind = "gram" if method == GRAM else None
    config.write_text(files.config(TASKS, folder / f"{method}.safetensors", method=method, beside=kind))
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
