"""This checkout beside another one: the same work in child processes, in turn, in one run."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.benchmarks.commands import ROOT, probed, sta, timed
from scripts.benchmarks.inputs import Inputs
from scripts.benchmarks.merging import FUSIONS, TASKS, sta_commands
from scripts.benchmarks.probe import SAMPLES
from scripts.benchmarks.table import Section, verdict

LIMIT = 1.1
Work = Callable[[Mapping[str, str]], tuple[float, float]]
"""A process's environment -> seconds, and seconds of processor time."""


def measure(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """Every row here and there.

    A ratio is the median of those of the pairs, so that what else the machine does meets both.
    """
    section = Section(
        f"This checkout beside {arguments.beside}",
        ("what", "here (s)", "there (s)", "here : there", "processor time", f"at most {LIMIT}"),
    )
    slower = []
    with tempfile.TemporaryDirectory(dir=inputs.folder) as name:
        places = {"here": ROOT, "there": arguments.beside.resolve()}
        environments = {
            side: {
                "PYTHONPATH": str(root),
                "STA_CACHE": str(Path(name) / side),
                # Modules are compiled in the first round, whatever the caller's environment says.
                "PYTHONDONTWRITEBYTECODE": "",
                "PYTHONPYCACHEPREFIX": str(Path(name) / f"{side}-modules"),
            }
            for side, root in places.items()
        }
        for what, work in _rows(inputs, arguments.model, Path(name)).items():
            if not any(word in what for word in arguments.rows):
                continue
            costs: dict[str, list[tuple[float, float]]] = {side: [] for side in places}
            for turn in range(1 + arguments.repetitions):
                for side in sorted(places, reverse=bool(turn % 2)):
                    cost = work(environments[side])
                    if turn:  # the first round compiles, hashes and fills the page cache
                        costs[side].append(cost)
            pairs = list(zip(costs["here"], costs["there"], strict=True))
            ratio, busy = (statistics.median(here[i] / there[i] for here, there in pairs) for i in (0, 1))
            seconds = {side: statistics.median(cost[0] for cost in found) for side, found in costs.items()}
            section.add(
                what,
                f"{seconds['here']:.3g}",
                f"{seconds['there']:.3g}",
                f"{ratio:.2f}",
                f"{busy:.2f}",
                verdict(ratio, LIMIT, most=True),
            )
            print("  ".join(section.rows[-1]), flush=True)
            if ratio > LIMIT:
                slower.append(what)
    section.notes = [
        f"{arguments.repetitions} pairs of processes in turn, after one that warms up. Asked: no row slower by more than "
        f"10% ({verdict(len(slower), 0, most=True)}{': ' + ', '.join(slower) if slower else ''})."
    ]
    return section


def _rows(inputs: Inputs, encoder: str, folder: Path) -> dict[str, Work]:
    def probe(*words: str) -> Work:
        def work(environment: Mapping[str, str]) -> tuple[float, float]:
            found = probed(*words, environment=environment)
            return found["seconds"], found["busy"]

        return work

    def process(*command: str) -> Work:
        def work(environment: Mapping[str, str]) -> tuple[float, float]:
            found = timed(command, environment)
            return found.process, found.busy

        return work

    commands = sta_commands(inputs.files(encoder, TASKS), folder, (*FUSIONS, ("TIES", "ties")))
    rows = {f"{what}, files to file": probe("sta", *words) for what, (words, _) in commands.items()}
    return rows | {
        "fuse, one tensor in memory": probe("fuse"),
        f"scoring {SAMPLES} samples": probe("score", encoder),
        "import sta_lightning": process(sys.executable, "-c", "import sta_lightning"),
        "sta --help": process(*sta("--help")),
    }
