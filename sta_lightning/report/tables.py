"""One table, three ways to show it: Markdown, CSV and plain text for the terminal."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Cell = float | int | str | None
Direction = Literal["high", "low"]

_HEADER_WIDTH = 11


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        label: what stands in the first column.
        values: one value for each further column; ``None`` is shown as a dash.
        compete: whether this row may carry the mark of the best value. Reference rows (the
            pretrained model, the fine-tuned models) do not compete with the merged ones.
    """

    label: str
    values: tuple[Cell, ...]
    compete: bool = True


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    Attributes:
        title: caption, without a final stop.
        columns: header of the label column, then of every value column.
        rows: the lines; each has ``len(columns) - 1`` values.
        best: value column -> which end is the better one; the best competing value is marked.
        note: a paragraph that is printed under the table.
        decimals: digits after the point of floating-point values.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    best: Mapping[str, Direction] = field(default_factory=dict)
    note: str = ""
    decimals: int = 2

    def __post_init__(self) -> None:
        """Refuse a row whose length is not that of the header."""
        for row in self.rows:
            if len(row.values) != len(self.columns) - 1:
                raise ValueError(
                    f"table {self.title!r}: row {row.label!r} has {len(row.values)} values, "
                    f"the header has {len(self.columns) - 1} value columns"
                )
        unknown = set(self.best) - set(self.columns[1:])
        if unknown:
            raise ValueError(f"table {self.title!r}: best= names no column: {sorted(unknown)}")

    def markdown(self) -> str:
        """The table as GitHub Markdown, the best values in bold."""
        lines = [f"**{self.title}**", "", "| " + " | ".join(_escape(name) for name in self.columns) + " |"]
        lines.append("|---|" + "---:|" * (len(self.columns) - 1))
        winners = self._winners()
        for index, row in enumerate(self.rows):
            cells = [_escape(row.label)]
            for column, value in enumerate(row.values):
                text = _escape(self._text(value))
                cells.append(f"**{text}**" if (index, column) in winners else text)
            lines.append("| " + " | ".join(cells) + " |")
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """The table as CSV with full precision; a missing value is an empty field."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow([row.label, *("" if value is None else value for value in row.values)])
        return stream.getvalue()

    def terminal(self) -> str:
        """The table as aligned plain text, the best values marked with a star."""
        winners = self._winners()
        body = [
            [row.label]
            + [
                self._text(value) + ("*" if (index, column) in winners else " ")
                for column, value in enumerate(row.values)
            ]
            for index, row in enumerate(self.rows)
        ]
        # Long names are broken at their spaces, so that eight columns stay on one screen.
        names = [textwrap.wrap(name, _HEADER_WIDTH, break_long_words=False) for name in self.columns]
        height = max(len(name) for name in names)
        names = [[""] * (height - len(name)) + name for name in names]
        header = [
            [name[row] + ("" if column == 0 else " ") for column, name in enumerate(names)]
            for row in range(height)
        ]
        widths = [max(len(line[i]) for line in [*header, *body]) for i in range(len(names))]

        def line(cells: list[str]) -> str:
            first = cells[0].ljust(widths[0])
            rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
            return " ".join([first, *rest]).rstrip()

        rule = "-" * (sum(widths) + len(widths) - 1)
        lines = textwrap.wrap(self.title, max(len(rule), 60))
        lines += [rule, *map(line, header), rule, *map(line, body), rule]
        if self.note:
            lines += textwrap.wrap(self.note, max(len(rule), 60))
        return "\n".join(lines) + "\n"

    def _text(self, value: Cell) -> str:
        if value is None:
            return "–"
        return f"{value:.{self.decimals}f}" if isinstance(value, float) else str(value)

    def _winners(self) -> set[tuple[int, int]]:
        """Positions of the best competing value of every column that has a direction.

        Values that read the same at the shown precision share the mark.
        """
        winners: set[tuple[int, int]] = set()
        for name, direction in self.best.items():
            column = self.columns.index(name) - 1
            values: dict[int, float] = {}
            for index, row in enumerate(self.rows):
                value = row.values[column]
                if row.compete and isinstance(value, (int, float)):
                    values[index] = round(float(value), self.decimals)
            if len(values) < 2:
                continue
            best = max(values.values()) if direction == "high" else min(values.values())
            winners |= {(index, column) for index, value in values.items() if value == best}
        return winners


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
