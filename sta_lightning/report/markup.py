"""HTML put together from escaped pieces: text is escaped unless it is markup already."""

from __future__ import annotations

from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, /, *children: str | None, **attributes: str | int | None) -> Markup:
    """One element: ``element("td", "a < b", class_="best")`` -> ``<td class="best">a &lt; b</td>``.

    Args:
        name: of the element.
        children: text, which is escaped, or :class:`Markup`, which is not; ``None`` is left out.
        attributes: a trailing underscore is dropped, an inner one becomes a hyphen; ``None`` is
            left out.
    """
    inner = "".join(
        piece if isinstance(piece, Markup) else escape(piece) for piece in children if piece is not None
    )
    return Markup(f"<{name}{_attributes(attributes)}>{inner}</{name}>")


def void(name: str, /, **attributes: str | int | None) -> Markup:
    """An element without an end, such as ``img``."""
    return Markup(f"<{name}{_attributes(attributes)}>")


def joined(pieces: list[Markup], between: str = "\n") -> Markup:
    """Pieces of markup one after the other."""
    return Markup(between.join(pieces))


def _attributes(attributes: dict[str, str | int | None]) -> str:
    shown = {
        name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value is not None
    }
    return "".join(f' {name}="{escape(str(value))}"' for name, value in shown.items())


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, in a table's cell too."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "\\`*|[]":
        text = text.replace(character, "\\" + character)
    return text.replace("\n", " ")
