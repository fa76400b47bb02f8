"""A figure as a data URI: drawn sharp as SVG, or as PNG where that is much smaller."""

from __future__ import annotations

import base64
import io
import re

import matplotlib
from matplotlib.figure import Figure

_PNG_DOTS_PER_INCH = 160
_LARGEST_SVG = 220_000
_NUMBER = re.compile(r"(?<=\d\.\d{2})\d+")


def svg(figure: Figure) -> str:
    """The figure as SVG, its text as paths, the same text for the same figure."""
    stream = io.StringIO()
    # A fixed salt: the ids of clip paths and glyphs are otherwise drawn anew in every process.
    with matplotlib.rc_context({"svg.hashsalt": "figure", "svg.fonttype": "path"}):
        figure.savefig(
            stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # Hundredths of a point are finer than any screen; glyphs are scaled by numbers that need their
    # digits.
    return re.sub(r' (?:d|x|y|x1|x2|y1|y2)="[^"]*"', lambda match: _NUMBER.sub("", match.group()), text)


def data_uri(figure: Figure) -> str:
    """The figure for an ``img`` element."""
    drawing, kind = svg(figure).encode(), "svg+xml"
    if len(drawing) > _LARGEST_SVG:
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=_PNG_DOTS_PER_INCH)
        drawing, kind = min((drawing, kind), (stream.getvalue(), "png"), key=lambda form: len(form[0]))
    return f"data:image/{kind};base64,{base64.b64encode(drawing).decode('ascii')}"


def pixels(figure: Figure) -> tuple[int, int]:
    """Width and height in CSS pixels, of which an inch has 96."""
    width, height = figure.get_size_inches()
    return round(96 * width), round(96 * height)
