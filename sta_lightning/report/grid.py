"""A table of measured numbers, and its Markdown, CSV and plain text; its HTML is a template."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from statistics import fmean, stdev
from typing import Literal

Direction = Literal["high", "low"]
Rank = Literal["best", "second"]
# A no-break space: an arrow does not stand alone on a line.
_ARROWS = {"high": "\u00a0↑", "low": "\u00a0↓", None: ""}
_MARKS = {"best": "**", "second": "*", None: ""}
_HEADER_WIDTH = 11


@dataclass(frozen=True)
class Number:
    """A measured number.

    Attributes:
        mean: over the seeds.
        std: sample standard deviation over the seeds; ``None`` for one seed.
        paper: what the paper reports in its place.
        digits: how many are shown after the point; the CSV has all of them.
    """

    mean: float
    std: float | None = None
    paper: float | None = None
    digits: int = 1

    @classmethod
    def of(cls, values: Sequence[float], paper: float | None = None, digits: int = 1) -> Number:
        """Mean and spread of one value a seed."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, paper, digits)

    @property
    def shown(self) -> str:
        """The mean as it reads."""
        return f"{self.mean:.{self.digits}f}"

    @property
    def spread(self) -> str:
        """`` ± 0.4``, or nothing."""
        return "" if self.std is None else f" ± {self.std:.{self.digits}f}"

    def __str__(self) -> str:
        return self.shown + self.spread

    @property
    def published(self) -> str:
        """The paper's number in brackets, or nothing."""
        return "" if self.paper is None else f" ({self.paper:.2f})"


Cell = Number | str | None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: its heading.
        group: heading that it shares with its neighbours.
        better: which end of its numbers is the better one; ``None`` where none is.
    """

    name: str
    group: str = ""
    better: Direction | None = None

    @property
    def key(self) -> str:
        """Its heading in the CSV."""
        return f"{self.group}: {self.name}" if self.group else self.name

    @property
    def heading(self) -> str:
        """Its heading with an arrow to the better end."""
        return self.name + _ARROWS[self.better]


@dataclass(frozen=True)
class Line:
    """One row.

    Attributes:
        label: what stands in the first column.
        cells: one for each column.
        detail: said beside the label, such as ``tuned``.
        compete: whether its numbers may be marked as the best.
        kind: class of the row, for its looks on the page.
    """

    label: str
    cells: tuple[Cell, ...]
    detail: str = ""
    compete: bool = True
    kind: str = ""


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        name: of its CSV file, without the ending.
        title: caption, without a final stop.
        head: heading of the first column.
        columns: all further ones.
        lines: its rows.
        note: printed below.
        detail: heading of the rows' details in the CSV; empty if they have none.
    """

    name: str
    title: str
    head: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    note: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        """Refuse a row whose length is not that of the header."""
        for line in self.lines:
            if len(line.cells) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row {line.label!r} has {len(line.cells)} cells, "
                    f"the header has {len(self.columns)} columns"
                )

    @cached_property
    def ranks(self) -> dict[tuple[int, int], Rank]:
        """(row, column) -> best or second best of the competing numbers, as they read."""
        ranks: dict[tuple[int, int], Rank] = {}
        for place, column in enumerate(self.columns):
            values = {
                row: round(cell.mean, 1)
                for row, line in enumerate(self.lines)
                if line.compete and isinstance(cell := line.cells[place], Number)
            }
            if column.better is None or len(values) < 2:
                continue
            levels = sorted(set(values.values()), reverse=column.better == "high")
            for row, value in values.items():
                if value in levels[:2]:
                    ranks[row, place] = "best" if value == levels[0] else "second"
        return ranks

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings that columns share, and over how many columns each goes; empty without any."""
        spans = [(name, len(list(run))) for name, run in groupby(column.group for column in self.columns)]
        return spans if any(name for name, _ in spans) else []

    @cached_property
    def textual(self) -> frozenset[int]:
        """Places of the columns that hold words."""
        return frozenset(
            place for line in self.lines for place, cell in enumerate(line.cells) if isinstance(cell, str)
        )

    @property
    def has_paper(self) -> bool:
        """Whether any number has the paper's beside it."""
        return any(isinstance(c, Number) and c.paper is not None for line in self.lines for c in line.cells)

    def text(self, cell: Cell) -> str:
        """A cell as it reads, without the paper's number."""
        return "–" if cell is None else str(cell)

    def markdown(self) -> str:
        """The table as GitHub Markdown, with a legend of its marks."""
        names = [
            f"{column.group}: {column.heading}" if column.group else column.heading for column in self.columns
        ]
        sides = ["---|" if place in self.textual else "---:|" for place in range(len(names))]
        lines = [
            f"**{markdown_text(self.title)}**",
            "",
            "| " + " | ".join(map(markdown_text, (self.head, *names))) + " |",
            "|---|" + "".join(sides),
        ]
        for row, line in enumerate(self.lines):
            name = markdown_text(f"{line.label}, {line.detail}" if line.detail else line.label)
            cells = [f"**{name}**" if line.kind == "sta" else name]
            for place, cell in enumerate(line.cells):
                mark = _MARKS[self.ranks.get((row, place))]
                published = cell.published if isinstance(cell, Number) else ""
                cells.append(f"{mark}{markdown_text(self.text(cell))}{mark}{published}")
            lines.append("| " + " | ".join(cells) + " |")
        legend = "Marks: bold: the best of a column; italic: the second best. " if self.ranks else ""
        if legend or self.note:
            lines += ["", markdown_text((legend + self.note).strip())]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """The table with every digit; after the means, deviations and the paper's numbers."""
        extra = [
            [
                name
                for name in ("std", "paper")
                if any(getattr(line.cells[place], name, None) is not None for line in self.lines)
            ]
            for place in range(len(self.columns))
        ]
        header = [self.head, self.detail] if self.detail else [self.head]
        for column, names in zip(self.columns, extra, strict=True):
            header += [column.key, *(f"{column.key} {name}" for name in names)]
        rows: list[list[str | float | None]] = [[*header]]
        for line in self.lines:
            fields: list[str | float | None] = [line.label, line.detail] if self.detail else [line.label]
            for cell, names in zip(line.cells, extra, strict=True):
                fields += [cell.mean if isinstance(cell, Number) else cell]
                fields += [getattr(cell, name, None) for name in names]
            rows.append(fields)
        return csv_text(rows)

    def terminal(self) -> str:
        """The table as aligned plain text, the best of a column marked with a star."""
        # Long names are broken at their spaces, so that eight columns stay on one screen.
        heads = [
            textwrap.wrap(name, _HEADER_WIDTH, break_long_words=False)
            for name in (self.head, *(column.key for column in self.columns))
        ]
        height = max(map(len, heads))
        heads = [[""] * (height - len(head)) + head for head in heads]
        header = [[first, *(f"{name} " for name in names)] for first, *names in zip(*heads, strict=True)]
        body = [
            [f"{line.label}, {line.detail}" if line.detail else line.label]
            + [
                self.text(cell) + ("*" if self.ranks.get((row, place)) == "best" else " ")
                for place, cell in enumerate(line.cells)
            ]
            for row, line in enumerate(self.lines)
        ]
        widths = [max(map(len, column)) for column in zip(*header, *body, strict=True)]
        lines = [
            " ".join(
                cell.ljust(width) if place - 1 in {-1, *self.textual} else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (*header, *body)
        ]
        rule = "-" * (sum(widths) + len(widths) - 1)
        title = textwrap.wrap(self.title, max(len(rule), 60))
        return "\n".join([*title, rule, *lines[:height], rule, *lines[height:], rule]) + "\n"


def csv_text(rows: Iterable[Iterable[str | float | None]]) -> str:
    """Rows as CSV; ``None`` is an empty field."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, in a table's cell too."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "\\`*|[]":
        text = text.replace(character, "\\" + character)
    return text.replace("\n", " ")
