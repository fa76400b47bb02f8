"""Print what the runs of docs/reproduce.md measured, beside what the paper reports.

    python scripts/paper_results.py                # of runs/paper, as Markdown
    python scripts/paper_results.py --runs FOLDER

Cells are "measured (reported)", in percent; a dash stands for a run that has not been made, or a
number that the paper does not give. The measured numbers are the last ones in each run's newest
metrics.csv.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

TASKS = {
    "mnist": "MNIST",
    "cars": "Stanford Cars",
    "svhn": "SVHN",
    "gtsrb": "GTSRB",
    "dtd": "DTD",
    "eurosat": "EuroSAT",
}
"""The six tasks in the order of the paper's tables, and what their sets are called."""

Numbers = Mapping[str, float]

TABLE_2: Mapping[str, Sequence[float]] = {
    "average": (96.61, 71.52, 79.64, 67.96, 46.08, 77.37, 73.19),
    "task_arithmetic": (98.97, 67.19, 91.60, 80.71, 48.34, 64.59, 75.23),
    "ties": (53.92, 75.66, 76.16, 76.61, 49.73, 90.07, 70.35),
    "dare_average": (96.61, 71.62, 79.63, 68.61, 45.86, 77.74, 73.34),
    "dare_task_arithmetic": (9.85, 70.22, 31.83, 74.93, 53.81, 92.67, 55.55),
    "dare_ties": (52.95, 75.55, 76.33, 76.29, 49.30, 90.63, 70.17),
    "pcb": (98.89, 77.78, 89.31, 85.05, 53.06, 90.30, 82.39),
    "sta_amp": (98.32, 73.21, 88.88, 76.72, 48.23, 76.26, 76.93),
    "sta_lp_amp": (98.91, 79.11, 90.72, 80.67, 53.17, 83.41, 80.94),
    "sta_lp": (99.34, 85.45, 93.31, 86.61, 51.99, 80.37, 82.84),
    "random_mask": (),  # ours
}
"""Table 2 of the paper by file: accuracy in percent on each of ``TASKS``, and the average."""

TABLE_3: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "mnist": {"pretrained": (51.73, 68.33), "task_arithmetic": (9.24, 62.30), "sta": (9.04, 64.51)},
    "cars": {"pretrained": (64.74, 68.33), "task_arithmetic": (9.85, 57.10), "sta": (10.25, 59.85)},
    "svhn": {"pretrained": (51.99, 68.33), "task_arithmetic": (6.36, 55.82), "sta": (6.33, 62.62)},
    "gtsrb": {"pretrained": (43.37, 68.33), "task_arithmetic": (7.49, 63.07), "sta": (7.38, 64.41)},
    "dtd": {"pretrained": (42.00, 68.33), "task_arithmetic": (7.84, 56.39), "sta": (7.63, 58.42)},
    "eurosat": {"pretrained": (54.63, 68.33), "task_arithmetic": (8.63, 54.94), "sta": (8.56, 62.07)},
}
"""Table 3 of the paper: accuracy in percent on the target and on ImageNet, the control."""


def measured(folder: Path) -> Numbers:
    """The last value of all that a run has logged below its folder; empty without a run."""
    files = sorted(folder.glob("csv/version_*/metrics.csv"), key=lambda file: int(file.parent.name[8:]))
    if not files:
        return {}
    with files[-1].open(newline="", encoding="utf-8") as opened:
        return {tag: float(value) for row in csv.DictReader(opened) for tag, value in row.items() if value}


def percent(found: Numbers, tag: str) -> str:
    """A measured share as a percentage."""
    return f"{100 * found[tag]:.2f}" if tag in found else "–"


def cells(found: Numbers, tags: Sequence[str], reported: Sequence[float]) -> list[str]:
    """Measured shares beside the reported percentages, which may be missing altogether."""
    known = [f"{value:.2f}" for value in reported] or ["–"] * len(tags)
    return [f"{percent(found, tag)} ({value})" for tag, value in zip(tags, known, strict=True)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(runs: Path) -> str:
    """Table 2, Figure 3 and Table 3 of the paper as far as they have been measured, in Markdown."""
    of_tasks = [*(f"test/{task}/acc" for task in TASKS), "test/avg_acc"]
    fused = [
        [row, *cells(measured(runs / "table_2" / row), of_tasks, known)] for row, known in TABLE_2.items()
    ]
    pairs = []
    for pair in itertools.combinations(TASKS, 2):
        places = (runs / "figure_3" / row / "_".join(pair) for row in ("sta_lp", "task_arithmetic"))
        pairs.append([" + ".join(pair), *(percent(measured(place), "test/avg_acc") for place in places)])
    forgotten = []
    for task, rows in TABLE_3.items():
        for method, known in rows.items():
            folder, tags = f"{method}/{task}", ["test/target/acc", "test/control/acc"]
            if method == "pretrained":
                folder, tags = method, [f"test/{task}/acc", "test/control/imagenet/acc"]
            forgotten.append([task, method, *cells(measured(runs / "table_3" / folder), tags, known)])
    return "\n\n".join(
        [
            "Accuracy in percent: measured (reported by the paper).",
            "## Table 2: six tasks fused",
            table(["method", *TASKS.values(), "average"], fused),
            "## Figure 3: pairs, average of the two (the paper shows them as a figure without numbers)",
            table(["pair", "sta_lp", "task_arithmetic"], pairs),
            "## Table 3: one task forgotten",
            table(["target", "method", "target, lower is better", "ImageNet, higher is better"], forgotten),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare the runs of docs/reproduce.md with the paper.")
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"))
    print(report(parser.parse_args().runs))
