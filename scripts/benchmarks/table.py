"""Tables of measurements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Section:
    """One table with what was asked of it.

    Attributes:
        title: the heading.
        columns: names of the columns.
        rows: the cells, as they are printed.
        notes: sentences under the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Add a row."""
        self.rows.append(cells)

    def markdown(self) -> str:
        """The section in Markdown."""
        lines = [f"## {self.title}", ""]
        lines.append(f"| {' | '.join(self.columns)} |")
        lines.append(f"|{'---|' * len(self.columns)}")
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        lines += ["", *(f"{note}\n" for note in self.notes)]
        return "\n".join(lines)


def interleaved(
    work: Mapping[str, Callable[[], object]], repetitions: int, *, warm: int = 1
) -> dict[str, float]:
    """Median seconds of several pieces of work, done in turn, so that other load meets all."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(warm + repetitions):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if turn >= warm:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def verdict(value: float, limit: float, *, most: bool) -> str:
    """Whether a figure is where it was asked to be."""
    return "reached" if (value <= limit if most else value >= limit) else "missed"
