"""Dots, lines, radar, heat maps: the numbers are there, the legend is outside, points tell."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
from matplotlib.figure import Figure

from sta_lightning.report.dots import Dots, Panel, dot_figure
from sta_lightning.report.embed import svg, svg_file
from sta_lightning.report.grid import Number
from sta_lightning.report.heat import heat_figure
from sta_lightning.report.lines import Band, Path, Station, band_figure, path_figure
from sta_lightning.report.radar import radar_figure
from sta_lightning.report.selection import Selection, selection_figure
from sta_lightning.report.style import DARK, LEVELS, LIGHT


def dots() -> Figure:
    panel = Panel(
        "heading",
        "accuracy (%)",
        [
            Dots("published", [Number(70.0, 1.0), None], 0, hollow=True),
            Dots("tuned", [Number(75.0), Number(80.0, 0.5)], 1),
        ],
        {"zero-shot": 60.0},
    )
    return dot_figure(["first", "second"], [panel], title="Dots")


def bands() -> Figure:
    band = Band("STA LP", [(1, Number(70, 1.0)), (4, Number(75, 0.5)), (256, Number(77, 0.1))], 0)
    other = Band("one seed", [(1, Number(60)), (4, Number(65))], 1)
    return band_figure([band, other], title="Bands", x_label="samples", y_label="accuracy (%)", powers=True)


def paths() -> Figure:
    path = Path("STA LP", [Station(60, 99, "p = 0.9"), Station(40, 97, ""), Station(20, 90, "p = 0.1")], 0)
    other = Path("negation", [Station(59.9, 98.9, "γ = 0.1"), Station(20, 80, "γ = 1")], 1)
    return path_figure(
        [path, other],
        title="Paths",
        x_label="x (%)",
        y_label="y (%)",
        start=("pretrained", 64, 99.3),
    )


def radar() -> Figure:
    values = {"STA LP": [80.0, 70.0, 75.0, 60.0], "zero-shot": [50.0, 55.0, 52.0, 51.0]}
    return radar_figure(["a", "b_c", "d", "e"], values, {"STA LP": 0, "zero-shot": None}, title="Radar")


def heat() -> Figure:
    return heat_figure(["r"], ["a", "b"], [[12.4, None]], title="Heat")


def shares() -> Figure:
    kinds = ("ln_1.weight", "ln_2.weight", "mlp.c_fc.weight", "mlp.c_proj.weight", "attn.in_proj_weight")
    kept = {
        f"transformer.resblocks.{layer}.{kind}": {"digits": 0.1 * layer, "street_numbers": 0.2}
        for layer in range(3)
        for kind in kinds
    }
    return selection_figure(Selection(kept), title="Kept")


ALL = [dots, bands, paths, radar, heat, shares]


@pytest.mark.parametrize("make", ALL)
def test_legend_lies_off_the_axes(make: Callable[[], Figure]) -> None:
    figure = make()
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    assert all(axes.get_legend() is None for axes in figure.axes)
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert not any(box.overlaps(axes.get_window_extent(renderer)) for axes in figure.axes)
        # Inside the figure, too: nothing of it is cut off.
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("make", [dots, bands, paths, shares])
def test_axes_are_named_with_their_unit(make: Callable[[], Figure]) -> None:
    shown = [axes for axes in make().axes if axes.get_visible()]
    assert any("(%)" in axes.get_ylabel() or "(%)" in axes.get_xlabel() for axes in shown)


def test_shares_have_a_panel_per_kind_in_percent() -> None:
    shown = [axes for axes in shares().axes if axes.get_visible()]
    assert len(shown) == 4, "the paper's kinds"
    assert [round(float(y), 6) for y in shown[0].lines[0].get_ydata()] == [0.0, 10.0, 20.0]


def test_five_references_are_told_apart() -> None:
    names = [f"reference {number}" for number in range(5)]
    polygons = radar_figure(
        ["a", "b", "c"], {name: [50.0, 60.0, 70.0] for name in names}, dict.fromkeys(names), title="Radar"
    )
    lines = polygons.axes[0].lines
    assert len({line.get_marker() for line in lines}) == 5
    assert len({str(line.get_linestyle()) + str(line._unscaled_dash_pattern) for line in lines}) == 5  # type: ignore[attr-defined]
    assert len({str(level) for level in LEVELS}) == 5


@pytest.mark.parametrize("make", ALL)
def test_svg_is_whole_and_the_same_every_time(make: Callable[[], Figure]) -> None:
    first = svg(make(), "one", 'what it "shows" & <more>')
    root = ElementTree.fromstring(first)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label") == 'what it "shows" & <more>'
    assert first == svg(make(), "one", 'what it "shows" & <more>')
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', first))
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert set(ids) == used, "no id but those that something refers to"
    assert all(name.startswith("one-") for name in used), "several figures lie in one page"


@pytest.mark.parametrize("make", ALL)
def test_every_colour_is_the_page_s_own(make: Callable[[], Figure]) -> None:
    drawing = svg(make(), "one", "")
    assert not re.search(r"#[0-9a-fA-F]{6}\b", drawing)
    file = svg_file(drawing)
    ElementTree.fromstring(file)
    for colour in (LIGHT.text, DARK.text):
        assert f"--ink: {colour};" in file
    assert "prefers-color-scheme: dark" in file
    assert len(file) < 40_000


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (dots, {"first, published: 70.0 ± 1.0%", "first, tuned: 75.0%", "second, tuned: 80.0 ± 0.5%"}),
        (bands, {"STA LP at 1: 70.0 ± 1.0%", "one seed at 4: 65.0%"}),
        (paths, {"STA LP: p = 0.9: 60.0%, 99.0%", "negation: γ = 1: 20.0%, 80.0%"}),
        (radar, {"STA LP, a: 80.0%", "zero-shot, e: 51.0%"}),
        (heat, {"r, a: 12.40%"}),
        (shares, {"ln_1.weight, layer 2, digits: 20.0%"}),
    ],
)
def test_a_point_tells_its_number(make: Callable[[], Figure], told: set[str]) -> None:
    root = ElementTree.fromstring(svg(make(), "one", ""))
    assert told <= {title.text for title in root.iter("{http://www.w3.org/2000/svg}title")}


def test_dots_are_at_their_values() -> None:
    (axes,) = dots().axes
    found = [
        list(line.get_xdata()) for line in axes.lines if line.get_marker() in "os" and len(line.get_xdata())
    ]
    assert [70.0] in found
    assert [75.0, 80.0] in found
    assert [text.get_text() for text in axes.texts] == ["first", "second"]
    first, second = (text.get_position()[1] for text in axes.texts)
    places = {float(y) for line in axes.lines if line.get_marker() in "os" for y in line.get_ydata()}
    assert first < min(places) < max(places)
    assert sum(first < place < second for place in places) == 2, "a row lies between its name and the next"


def test_samples_stand_on_a_logarithmic_axis_with_plain_numbers() -> None:
    figure = bands()
    (axes,) = figure.axes
    figure.draw_without_rendering()
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "256"]


def test_labels_of_ends_do_not_overlap() -> None:
    figure = paths()
    figure.draw_without_rendering()
    (axes,) = figure.axes
    shown = [text.get_text() for text in axes.texts]
    assert {"p = 0.1", "γ = 1"} <= set(shown)
    assert len(shown) == len(set(shown))


def test_heat_has_its_number_in_every_cell() -> None:
    assert [text.get_text() for text in heat().axes[0].texts] == ["12", "–"]


def test_series_differ_without_colour() -> None:
    for theme in (LIGHT, DARK):
        looks = {(theme.marker(look), theme.dash(look)) for look in range(len(theme.colours))}
        assert len(looks) == len(theme.colours) >= 6
        assert len({theme.colour(look) for look in range(len(theme.colours))}) == len(theme.colours)
        assert theme.colour(None) == theme.grey
