"""Files to file, in cold processes, beside reading and writing the same bytes; and mergekit."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.benchmarks.commands import Cost, private_memory, sta, timed
from scripts.benchmarks.inputs import Files, Inputs
from scripts.benchmarks.table import Section, verdict

TASKS = 6
LIMIT = 300
"""MB that a merge may take beyond torch's own."""
NO_MERGEKIT = "mergekit is not installed here (no `mergekit-pytorch`), so nothing is compared with it."
FUSIONS = (("STA fuse", "sta"), ("task arithmetic", "task_arithmetic"), ("average", "average"))


def read_and_write(sources: Sequence[Path], target: Path) -> float:
    """Seconds to read the files once and to write and flush one of the first one's size."""
    buffer = bytearray(1 << 20)
    start = time.perf_counter()
    for path in sources:
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    with target.open("wb", buffering=0) as stream:
        for _ in range(sources[0].stat().st_size >> 20):
            stream.write(buffer)
        os.fsync(stream.fileno())
    return time.perf_counter() - start


def mergekit_command(
    files: Files, folder: Path, method: str, output: Path, command: str, dtype: str = "float32"
) -> list[str]:
    """The words that run mergekit on the same models; ``folder`` is for its configuration."""
    density = "\n      density: 0.2" if method == "ties" else ""
    lines = [
        f"merge_method: {method}",
        f"base_model: {files.pretrained}",
        f"dtype: {dtype}",
        "parameters:",
        "  normalize: false",
        "models:",
        *(f"  - model: {path}\n    parameters:\n      weight: 0.4{density}" for path in files.finetuned),
    ]
    config = folder / f"mergekit-{method}.yaml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [command, str(config), str(output), "--quiet"]


def measure(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """Merging and forgetting six models."""
    files = inputs.files(arguments.model, TASKS)
    section = Section(
        f"Files to file: {TASKS} × {arguments.model}, warm page cache, cold process",
        (
            "what",
            "the merge (s)",
            "reading and writing its files (s)",
            "ratio",
            "whole process (s)",
            "private memory beyond torch's (MB)",
        ),
    )
    with tempfile.TemporaryDirectory(dir=inputs.folder) as name:
        folder = Path(name)
        commands = sta_commands(files, folder)
        runs: dict[str, Callable[[], Cost]] = {
            what: (lambda words=words: timed(sta(*words))) for what, (words, _) in commands.items()
        }
        if arguments.mergekit:
            for method in ("task_arithmetic", "ties"):
                what = f"mergekit {method}"
                words = mergekit_command(files, folder, method, folder / what, arguments.mergekit)
                runs[what] = lambda words=words: timed(words)
        bounds: dict[str, list[float]] = {what: [] for what in commands}
        costs: dict[str, list[Cost]] = {what: [] for what in runs}
        for turn in range(1 + arguments.repetitions):
            for what, run in runs.items():
                # The slowest is done once: it takes minutes, and is far from its limit.
                if what == "mergekit ties" and turn != 1:
                    continue
                if what in commands:
                    bound = read_and_write(commands[what][1], folder / "copy")
                cost = run()
                if turn:  # the first round compiles, hashes and fills the page cache
                    costs[what].append(cost)
                    if what in commands:
                        bounds[what].append(bound)
        memory = {what: private_memory(*words) for what, (words, _) in commands.items()}
    whole = {what: statistics.median(cost.process for cost in found) for what, found in costs.items()}
    ratios: dict[str, float] = {}
    for what in commands:
        work, bound = statistics.median(c.work for c in costs[what]), statistics.median(bounds[what])
        ratios[what] = work / bound
        torch_alone, highest = memory[what]
        section.add(
            what,
            f"{work:.2f}",
            f"{bound:.2f}",
            f"{ratios[what]:.2f}",
            f"{whole[what]:.2f}",
            f"{highest - torch_alone:.0f} (torch alone: {torch_alone:.0f})",
        )
    for what in runs.keys() - commands.keys():
        section.add(what, "", "", "", f"{whole[what]:.2f}", "")
    extra = max(highest - alone for alone, highest in memory.values())
    section.notes = [
        f"Asked: STA at most twice reading and writing ({verdict(ratios['STA fuse'], 2, most=True)}: "
        f"{ratios['STA fuse']:.2f}); forgetting at most 3 times ({verdict(ratios['STA forget'], 3, most=True)}: "
        f"{ratios['STA forget']:.2f}); at most {LIMIT} MB beyond torch's own ({verdict(extra, LIMIT, most=True)}: {extra:.0f}).",
        *_beside_mergekit(whole),
        f"Median of {arguments.repetitions} rounds in turn. The SHA-256 of the sources, which the result's metadata names, "
        "are remembered from the first round, as they are for every file that this package has written or read before; an "
        "unknown file takes about a second per GB once.",
    ]
    return section


def sta_commands(
    files: Files, folder: Path, fusions: Sequence[tuple[str, str]] = FUSIONS
) -> dict[str, tuple[list[str], list[Path]]]:
    """What is measured: the words after ``sta``, and the files that it reads."""
    found: dict[str, tuple[list[str], list[Path]]] = {}
    models = [files.pretrained, *files.finetuned]
    for what, method in fusions:
        scores = method == "sta"
        config = folder / f"{method}.yaml"
        beside = "importance" if scores else None
        config.write_text(files.config(TASKS, folder / f"{method}.safetensors", method=method, beside=beside))
        found[what] = (["merge", "--config", str(config)], [*models, *(files.importance if scores else [])])
    words = [
        "forget",
        "--model.target=task00",
        f"--model.encoder={files.encoder}",
        f"--model.pretrained={files.pretrained}",
        f"--model.finetuned={files.finetuned[0]}",
        f"--model.importance={files.importance[0]}",
        f"--output={folder / 'forgotten.safetensors'}",
        "--evaluate=false",
    ]
    found["STA forget"] = (words, [files.pretrained, files.finetuned[0], files.importance[0]])
    return found


def _beside_mergekit(whole: dict[str, float]) -> list[str]:
    theirs = whole.get("mergekit task_arithmetic")
    if theirs is None:
        return [NO_MERGEKIT]
    sta_share, faster = whole["STA fuse"] / theirs, theirs / whole["task arithmetic"]
    return [
        f"Whole processes beside mergekit's task arithmetic: STA takes {sta_share:.2f} of its time (asked: at most 0.5, "
        f"{verdict(sta_share, 0.5, most=True)}); our task arithmetic is {faster:.1f} times faster (asked: 2.5, "
        f"{verdict(faster, 2.5, most=False)})."
    ]
