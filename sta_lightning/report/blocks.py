"""What a report is made of, before it becomes a page or Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from sta_lightning.report.grid import Grid


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Item:
    """An item of a list.

    Attributes:
        text: plain.
        lead: stands in bold before it.
        children: a list of its own.
    """

    text: str
    lead: str = ""
    children: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Bullets:
    """A list of items."""

    items: tuple[Item, ...]


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: of its file, without the ending; the key of the figure.
        title: first words of its caption.
        caption: what is drawn and how it is to be read.
        alt: what it shows, for readers who do not see it.
    """

    name: str
    title: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Details:
    """Something that opens on demand."""

    summary: str
    blocks: tuple[Block, ...]


Block = Paragraph | Bullets | Picture | Grid | Details


@dataclass(frozen=True)
class Section:
    """A section.

    Attributes:
        key: its anchor.
        title: its heading.
        blocks: what it holds.
    """

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: its heading.
        subtitle: below it, in a line.
        sections: in order.
    """

    title: str
    subtitle: str
    sections: tuple[Section, ...]

    def grids(self) -> list[Grid]:
        """Every table, in order."""
        return [
            block for section in self.sections for block in _flat(section.blocks) if isinstance(block, Grid)
        ]

    def pictures(self) -> list[Picture]:
        """Every figure, in order."""
        return [
            block
            for section in self.sections
            for block in _flat(section.blocks)
            if isinstance(block, Picture)
        ]


def _flat(blocks: tuple[Block, ...]) -> list[Block]:
    flat: list[Block] = []
    for block in blocks:
        flat += _flat(block.blocks) if isinstance(block, Details) else [block]
    return flat
