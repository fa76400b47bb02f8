"""A report as one HTML page that needs nothing beside it: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from sta_lightning.report.blocks import Block, Bullets, Details, Document, Item, Paragraph, Picture, Section
from sta_lightning.report.markup import Markup, element, joined, void


@dataclass(frozen=True)
class Drawn:
    """A figure ready for the page.

    Attributes:
        light: data URI for light pages and print.
        dark: data URI for dark pages.
        width: in CSS pixels.
        height: in CSS pixels.
    """

    light: str
    dark: str
    width: int
    height: int


def page(document: Document, drawn: Mapping[str, Drawn]) -> str:
    """The document as a page.

    Args:
        document: what to show.
        drawn: the figures under their pictures' names.
    """
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    head = element(
        "head",
        void("meta", charset="utf-8"),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="color-scheme", content="light dark"),
        element("title", document.title),
        # The style sheet is this package's own and holds no "</".
        element("style", Markup("\n" + style)),
    )
    contents = element(
        "nav",
        element("h2", "Contents", id="contents"),
        element(
            "ul",
            *(element("li", element("a", part.title, href=f"#{part.key}")) for part in document.sections),
        ),
        aria_labelledby="contents",
    )
    header = element("header", element("h1", document.title), element("p", document.subtitle))
    main = element("main", joined([_section(section, drawn) for section in document.sections]))
    body = element("body", header, element("div", contents, main, class_="columns"))
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


def _section(section: Section, drawn: Mapping[str, Drawn]) -> Markup:
    heading = element("h2", section.title)
    return element(
        "section", joined([heading, *(_block(block, drawn) for block in section.blocks)]), id=section.key
    )


def _block(block: Block, drawn: Mapping[str, Drawn]) -> Markup:
    match block:
        case Paragraph(text):
            return element("p", text)
        case Bullets(items):
            return element("ul", *(_item(item) for item in items))
        case Picture():
            return _picture(block, drawn[block.name])
        case Details(summary, blocks):
            inner = joined([_block(inner, drawn) for inner in blocks])
            return element("details", element("summary", summary), inner)
    return block.html()


def _item(item: Item) -> Markup:
    lead = element("strong", item.lead) if item.lead else None
    children = element("ul", *(_item(child) for child in item.children)) if item.children else None
    return element("li", lead, Markup(" ") if lead else None, item.text, children)


def _picture(picture: Picture, drawn: Drawn) -> Markup:
    # Two images of which the style sheet shows one. A "picture" with a "source" for dark pages
    # would be shorter, but browsers do not choose anew when a page is printed: its figures would
    # then be dark on white paper.
    shown: dict[str, str | int | None] = {"alt": picture.alt, "width": drawn.width, "height": drawn.height}
    images = [
        void("img", src=drawn.light, class_="light", **shown),
        void("img", src=drawn.dark, class_="dark", **shown),
    ]
    frame = element(
        "div",
        *images,
        class_="scroll picture wide" if drawn.width > 800 else "scroll picture",
        tabindex=0,
        role="region",
        aria_label=picture.title,
    )
    caption = element("figcaption", element("strong", picture.title + "."), " " + picture.caption)
    return element("figure", frame, caption)
