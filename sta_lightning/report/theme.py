"""What a figure is drawn with: one theme for light pages and print, one for dark pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", "--", "-.", ":")
LEVELS = ("--", ":", "-.")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    Attributes:
        background: of figure and page.
        text: of titles, labels and ticks.
        grey: of references and of whatever is no series.
        grid: of the lines behind the data.
        colours: of the series, to be told apart by colour-blind readers too; marker and dash help.
        heat: name of matplotlib's colour map for heat maps.
    """

    background: str
    text: str
    grey: str
    grid: str
    colours: tuple[str, ...]
    heat: str

    def colour(self, look: int | None) -> str:
        """The colour of a series; grey for a reference (``None``)."""
        return self.grey if look is None else self.colours[look % len(self.colours)]

    def marker(self, look: int | None) -> str:
        """The marker of a series: another one once the colours begin again."""
        if look is None:
            return "*"
        return MARKERS[(look + look // len(self.colours)) % len(MARKERS)]

    def dash(self, look: int | None) -> str:
        """The line style of a series: neighbours differ, and so do series of one colour."""
        if look is None:
            return ":"
        return DASHES[(look + look // len(self.colours)) % len(DASHES)]

    def line(self, look: int | None) -> dict[str, Any]:
        """Colour, dash and marker of a series, as matplotlib's ``plot`` takes them."""
        return {"color": self.colour(look), "linestyle": self.dash(look), "marker": self.marker(look)}


# Okabe and Ito's palette without its yellow (unreadable on white), darkest contrast first; then two
# of Tol's.
LIGHT = Theme(
    background="#FFFFFF",
    text="#000000",
    grey="#7F7F7F",
    grid="#E6E6E6",
    colours=(
        *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
        *("#56B4E9", "#000000", "#882255", "#7F7F1F"),
    ),
    heat="Blues",
)
# The same hues, as light as a dark page needs them.
DARK = Theme(
    background="#15181D",
    text="#E4E6EA",
    grey="#9AA0A8",
    grid="#2E333B",
    colours=(
        *("#4AA8EC", "#FF8447", "#2BC79A", "#E59CC8", "#F2B632"),
        *("#A6DBFF", "#FFFFFF", "#D9638F", "#C9C94F"),
    ),
    heat="Blues_r",
)
