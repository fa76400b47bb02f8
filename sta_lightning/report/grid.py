"""A table of measured numbers, in three forms: a page's HTML, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Literal

from sta_lightning.report.markup import Markup, element, joined, markdown_text
from sta_lightning.report.tables import Direction

Rank = Literal["best", "second"]
_LONG = 28
# A no-break space: an arrow does not stand alone on a line.
_ARROWS = {"high": "\u00a0↑", "low": "\u00a0↓", None: ""}
LEGEND = "bold: the best of a column; underlined: the second best"
MARKDOWN_LEGEND = "bold: the best of a column; italic: the second best"


@dataclass(frozen=True)
class Number:
    """A measured number.

    Attributes:
        mean: over the seeds.
        std: standard deviation over the seeds; nothing for one seed.
        paper: what the paper reports in its place.
    """

    mean: float
    std: float | None = None
    paper: float | None = None


Cell = Number | str | None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: its heading.
        group: heading that it shares with its neighbours.
        better: which end of its numbers is the better one; nothing where none is.
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
        """Its heading with an arrow that says which end is the better one."""
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
        decimals: digits after the point on the page; the CSV has all of them.
        detail: heading of the rows' details in the CSV; nothing if they have none.
    """

    name: str
    title: str
    head: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    note: str = ""
    decimals: int = 1
    detail: str = field(default="")

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
        """(row, column) -> best or second best of the competing numbers, as they read at the shown precision."""
        ranks: dict[tuple[int, int], Rank] = {}
        for place, column in enumerate(self.columns):
            if column.better is None:
                continue
            values: dict[int, float] = {}
            for index, line in enumerate(self.lines):
                cell = line.cells[place]
                if line.compete and isinstance(cell, Number):
                    values[index] = round(cell.mean, self.decimals)
            levels = sorted(set(values.values()), reverse=column.better == "high")
            if len(values) < 2:
                continue
            for index, value in values.items():
                if value in levels[:2]:
                    ranks[index, place] = "best" if value == levels[0] else "second"
        return ranks

    @property
    def has_paper(self) -> bool:
        """Whether any number has the paper's beside it."""
        return any(isinstance(c, Number) and c.paper is not None for line in self.lines for c in line.cells)

    def html(self) -> Markup:
        """The table in a container of its own that scrolls sideways, with a legend of its marks."""
        head = [element("tr", *self._headings())]
        if any(column.group for column in self.columns):
            groups = [element("td")]
            for group, members in groupby(self.columns, key=lambda column: column.group):
                span = len(list(members))
                groups.append(
                    element("th", group, colspan=span, scope="colgroup")
                    if group
                    else element("td", colspan=span)
                )
            head.insert(0, element("tr", *groups))
        body = [
            element("tr", self._row_heading(line), *self._cells(index, line), class_=line.kind or None)
            for index, line in enumerate(self.lines)
        ]
        table = element(
            "table",
            element("caption", element("span", self.title)),
            element("thead", joined(head)),
            element("tbody", joined(body)),
        )
        note = " ".join(part for part in (f"Marks: {LEGEND}." if self.ranks else "", self.note) if part)
        return joined(
            [
                element("div", table, class_="scroll", tabindex=0, role="region", aria_label=self.title),
                *([element("p", note, class_="note")] if note else []),
            ]
        )

    def markdown(self) -> str:
        """The table as GitHub Markdown, with a legend of its marks."""
        groups = any(column.group for column in self.columns)
        names = [
            f"{column.group}: {column.heading}" if groups and column.group else column.heading
            for column in self.columns
        ]
        lines = [f"**{markdown_text(self.title)}**", ""]
        lines.append("| " + " | ".join(markdown_text(name) for name in (self.head, *names)) + " |")
        numeric = [
            any(isinstance(line.cells[place], Number) for line in self.lines) for place in range(len(names))
        ]
        lines.append("|---|" + "".join("---:|" if right else "---|" for right in numeric))
        for index, line in enumerate(self.lines):
            cells = [markdown_text(f"{line.label}, {line.detail}" if line.detail else line.label)]
            for place, cell in enumerate(line.cells):
                text = markdown_text(self.text(cell))
                mark = {"best": "**", "second": "*"}.get(self.ranks.get((index, place), ""), "")
                cells.append(f"{mark}{text}{mark}{_paper(cell)}")
            lines.append("| " + " | ".join(cells) + " |")
        note = " ".join(
            part for part in (f"Marks: {MARKDOWN_LEGEND}." if self.ranks else "", self.note) if part
        )
        if note:
            lines += ["", markdown_text(note)]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """The table with full precision: a column of means, then one of standard deviations where there are any."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        extra = [self._extra(place) for place in range(len(self.columns))]
        header = [self.head, *([self.detail] if self.detail else [])]
        for column, names in zip(self.columns, extra, strict=True):
            header += [column.key, *(f"{column.key} {name}" for name in names)]
        writer.writerow(header)
        for line in self.lines:
            fields: list[str | float | None] = [line.label, *([line.detail] if self.detail else [])]
            for cell, names in zip(line.cells, extra, strict=True):
                if isinstance(cell, Number):
                    fields += [cell.mean, *(getattr(cell, name) for name in names)]
                else:
                    fields += [cell, *(None for _ in names)]
            writer.writerow(["" if value is None else value for value in fields])
        return stream.getvalue()

    def text(self, cell: Cell) -> str:
        """A cell as it reads, without the paper's number."""
        if cell is None:
            return "–"
        if isinstance(cell, str):
            return cell
        spread = "" if cell.std is None else f" ± {cell.std:.{self.decimals}f}"
        return f"{cell.mean:.{self.decimals}f}{spread}"

    def _extra(self, place: int) -> list[str]:
        cells = [line.cells[place] for line in self.lines]
        numbers = [cell for cell in cells if isinstance(cell, Number)]
        names = ["std"] if any(number.std is not None for number in numbers) else []
        return names + (["paper"] if any(number.paper is not None for number in numbers) else [])

    def _headings(self) -> list[Markup]:
        first = element("th", self.head, scope="col")
        rest = [
            element("th", column.heading, scope="col", class_="text" if self._is_text(place) else None)
            for place, column in enumerate(self.columns)
        ]
        return [first, *rest]

    def _is_text(self, place: int) -> bool:
        cells = [line.cells[place] for line in self.lines]
        return any(isinstance(cell, str) for cell in cells)

    def _row_heading(self, line: Line) -> Markup:
        detail = element("small", line.detail) if line.detail else None
        return element("th", line.label, Markup(" ") if detail else None, detail, scope="row")

    def _cells(self, index: int, line: Line) -> list[Markup]:
        cells = []
        for place, cell in enumerate(line.cells):
            if not isinstance(cell, Number):
                cells.append(element("td", self.text(cell), class_=_text_class(cell, self._is_text(place))))
                continue
            rank = self.ranks.get((index, place))
            mean = f"{cell.mean:.{self.decimals}f}"
            shown = element({"best": "strong", "second": "u"}[rank], mean) if rank else Markup(mean)
            spread = (
                None
                if cell.std is None
                else element("span", f" ± {cell.std:.{self.decimals}f}", class_="std")
            )
            paper = None if cell.paper is None else element("span", _paper(cell), class_="paper")
            cells.append(element("td", shown, spread, paper, class_=rank))
        return cells


def _text_class(cell: str | None, column_of_text: bool) -> str | None:
    if not column_of_text:
        return None
    return "text long" if cell and len(cell) >= _LONG else "text"


def _paper(cell: Cell) -> str:
    return f" ({cell.paper:.2f})" if isinstance(cell, Number) and cell.paper is not None else ""
