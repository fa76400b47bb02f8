"""What a report is made of, and how it becomes an HTML page or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from sta_lightning.report.embed import palette
from sta_lightning.report.grid import Grid, markdown_text


@dataclass(frozen=True)
class Item:
    """An item of a list, its lead in bold before it, with a list of its own."""

    text: str
    lead: str = ""
    children: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: of its file, without the ending; the key of the figure.
        title: first words of its caption.
        caption: what is drawn and how it is to be read.
        alt: what it shows, for readers who do not see it.
        draw: the figure.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Details:
    """What opens on demand."""

    summary: str
    blocks: tuple[Block, ...]


Block = str | tuple[Item, ...] | Picture | Grid | Details
"""A paragraph, a list, a figure, a table, or any of these that open on demand."""


@dataclass(frozen=True)
class Section:
    """A section; its key is the anchor."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    subtitle: str
    headline: str
    sections: tuple[Section, ...]

    def grids(self) -> list[Grid]:
        """Every table, in order."""
        return [block for block in self._flat() if isinstance(block, Grid)]

    def pictures(self) -> list[Picture]:
        """Every figure, in order."""
        return [block for block in self._flat() if isinstance(block, Picture)]

    def _flat(self) -> Iterator[Block]:
        for section in self.sections:
            for block in section.blocks:
                yield from block.blocks if isinstance(block, Details) else (block,)


def html(document: Document, drawn: Mapping[str, str]) -> str:
    """The document as a page that needs nothing beside it: no network, no other file.

    Without scripts it shows the same; with them the tables' columns can be sorted.

    Args:
        document: what to show; its text is escaped.
        drawn: the figures as ``svg`` elements under their pictures' names.
    """
    environment = Environment(
        loader=PackageLoader("sta_lightning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["table"] = lambda block: isinstance(block, Grid)
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    page = environment.get_template("page.html").render(document=document, drawn=drawn, palette=palette())
    return page.strip() + "\n"


def markdown(document: Document) -> str:
    """The document as GitHub Markdown; a picture is the file ``<name>.svg`` beside it."""
    texts = (document.subtitle, document.headline)
    parts = [f"# {markdown_text(document.title)}", *map(markdown_text, texts)]
    for section in document.sections:
        parts += [f"## {markdown_text(section.title)}", *map(_markdown, section.blocks)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case str():
            return markdown_text(block)
        case tuple():
            return "\n".join(_items(block))
        case Picture():
            shown = f"![{markdown_text(block.alt)}]({block.name}.svg)"
            return f"{shown}\n\n**{markdown_text(block.title)}.** {markdown_text(block.caption)}"
        case Details(summary, blocks):
            inner = "\n\n".join(_markdown(inner).rstrip("\n") for inner in blocks)
            return f"<details>\n<summary>{markdown_text(summary)}</summary>\n\n{inner}\n\n</details>"
        case Grid():
            return block.markdown()


def _items(items: tuple[Item, ...], indent: str = "") -> Iterator[str]:
    for item in items:
        lead = f"**{markdown_text(item.lead)}** " if item.lead else ""
        yield f"{indent}- {lead}{markdown_text(item.text)}"
        yield from _items(item.children, indent + "  ")
