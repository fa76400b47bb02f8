"""A figure as SVG: its colours are variables of the style sheet, its points tell their numbers."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from sta_lightning.report.style import DARK, LIGHT, Theme, told, variables

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONT = "'DejaVu Sans', Verdana, sans-serif"
_NUMBER = re.compile(r"(?<=\d\.\d{2})\d+")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_VARIABLES = {colour.lower(): f"var(--{name})" for name, colour in variables(LIGHT).items()}
_GEOMETRY = ("d", "x", "y", "width", "height", "transform", "points")


def svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an ``svg`` element, the same text for the same figure.

    Args:
        figure: drawn in the colours of ``LIGHT``, each of which becomes ``var(--...)``.
        name: goes before every id, which are those of a whole page otherwise.
        alt: what it shows, for readers who do not see it.
    """
    stream = io.StringIO()
    # A fixed salt: the ids of clip paths and markers are otherwise drawn anew in every process.
    settings = {"svg.hashsalt": "figure", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]  # a mapping of any settings
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # The document type's address is no part of the picture.
    root = ElementTree.fromstring(stream.getvalue())
    used = set(re.findall(r"(?<=#)[^\")\s]+", ElementTree.tostring(root, encoding="unicode")))
    for parent in list(root.iter()):
        _tell(parent)
        for child in list(parent):
            if child.tag.endswith(("metadata", "}style")):
                parent.remove(child)
        own = parent.attrib.pop("id", None)
        if own in used:
            parent.set("id", f"{name}-{own}")
        if target := parent.attrib.pop(_HREF, None):
            parent.set("href", f"#{name}-{target[1:]}")
        if clip := parent.get("clip-path"):
            parent.set("clip-path", clip.replace("#", f"#{name}-"))
        for attribute in _GEOMETRY:
            if attribute in parent.attrib:
                parent.set(attribute, _NUMBER.sub("", parent.attrib[attribute]))
        if style := parent.get("style"):
            parent.set("style", _styled(style))
    root.attrib.pop("version", None)
    root.attrib |= {
        "role": "img",
        "aria-label": alt,
        "style": f"stroke-linejoin: round; font-family: {_FONT}; --wide: {root.attrib['viewBox'].split()[2]}",
    }
    ElementTree.register_namespace("", _SVG)
    return re.sub(r"\s*\n\s*", "\n", ElementTree.tostring(root, encoding="unicode"))


def svg_file(drawing: str) -> str:
    """An ``svg`` element as a file of its own, in light colours or dark ones as its reader asks."""
    begun = drawing.index(">") + 1
    return f"{drawing[:begun]}<style>{palette()}</style>{drawing[begun:]}\n"


def palette() -> str:
    """A style sheet's variables: light, for print too, and dark."""
    dark = f"@media screen and (prefers-color-scheme: dark) {{ {_sheet(DARK)} }}"
    return f"{_sheet(LIGHT)} {dark}"


def _sheet(theme: Theme) -> str:
    return f":root {{ {' '.join(f'--{name}: {colour};' for name, colour in variables(theme).items())} }}"


def _styled(style: str) -> str:
    style = _COLOUR.sub(lambda match: _VARIABLES.get(match.group(), match.group()), style)
    return re.sub(r"font: (?:(\d+|bold) )?([\d.]+)px [^;]*", _font, style)


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match.group(1)}; " if match.group(1) else ""
    return f"{weight}font-size: {match.group(2)}px"


def _tell(group: ElementTree.Element) -> None:
    """Put the texts of an artist into its markers, or its one text into the group itself."""
    texts = told(group.get("id", ""))
    if not texts:
        return
    places = [
        (parent, number, child)
        for parent in group.iter()
        for number, child in enumerate(parent)
        if child.tag.endswith("}use")
    ]
    if not places:
        group.insert(0, _title(texts[0]))
    for (parent, number, marker), text in zip(places, texts, strict=False):
        # In a group of its own: not every browser shows the title of a "use".
        wrapped = ElementTree.Element(f"{{{_SVG}}}g")
        wrapped.extend([_title(text), marker])
        parent[number] = wrapped


def _title(text: str) -> ElementTree.Element:
    title = ElementTree.Element(f"{{{_SVG}}}title")
    title.text = text
    return title
