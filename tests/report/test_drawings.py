"""Dots, lines, radar, heat maps: the numbers are there, the legend is outside, themes differ."""

import pathlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sta_lightning.report.dots import Dots, Panel, dot_figure
from sta_lightning.report.embed import data_uri, pixels, svg
from sta_lightning.report.grid import Number
from sta_lightning.report.heat import heat_figure
from sta_lightning.report.lines import Band, Path, Station, band_figure, path_figure
from sta_lightning.report.radar import radar_figure
from sta_lightning.report.selection import Selection, selection_figure
from sta_lightning.report.style import DARK, LIGHT, Theme, save_png


def dots(theme: Theme = LIGHT) -> Figure:
    panel = Panel(
        "heading",
        "accuracy (%)",
        [
            Dots("published", [Number(70.0, 1.0), None], 0, hollow=True),
            Dots("tuned", [Number(75.0), Number(80.0, 0.5)], 1),
        ],
        {"zero-shot": 60.0},
    )
    return dot_figure(["first", "second"], [panel], title="Dots", theme=theme)


def bands(theme: Theme = LIGHT) -> Figure:
    band = Band("STA LP", [(1, Number(70, 1.0)), (4, Number(75, 0.5)), (256, Number(77, 0.1))], 0)
    other = Band("one seed", [(1, Number(60)), (4, Number(65))], 1)
    return band_figure(
        [band, other], title="Bands", x_label="samples", y_label="accuracy (%)", powers=True, theme=theme
    )


def paths(theme: Theme = LIGHT) -> Figure:
    path = Path("STA LP", [Station(60, 99, "p = 0.9"), Station(40, 97, ""), Station(20, 90, "p = 0.1")], 0)
    other = Path("negation", [Station(59.9, 98.9, "γ = 0.1"), Station(20, 80, "γ = 1")], 1)
    return path_figure(
        [path, other],
        title="Paths",
        x_label="x (%)",
        y_label="y (%)",
        start=("pretrained", 64, 99.3),
        theme=theme,
    )


def radar(theme: Theme = LIGHT) -> Figure:
    values = {"STA LP": [80.0, 70.0, 75.0, 60.0], "zero-shot": [50.0, 55.0, 52.0, 51.0]}
    return radar_figure(
        ["a", "b_c", "d", "e"], values, {"STA LP": 0, "zero-shot": None}, title="Radar", theme=theme
    )


def heat(theme: Theme = LIGHT) -> Figure:
    return heat_figure(["r"], ["a", "b"], [[12.4, None]], title="Heat", bar_label="kept (%)", theme=theme)


def shares(theme: Theme = LIGHT) -> Figure:
    kinds = ("ln_1.weight", "ln_2.weight", "mlp.c_fc.weight", "mlp.c_proj.weight", "attn.in_proj_weight")
    kept = {
        f"transformer.resblocks.{layer}.{kind}": {"digits": 0.1 * layer, "street_numbers": 0.2}
        for layer in range(3)
        for kind in kinds
    }
    return selection_figure(Selection(kept), title="Kept", theme=theme)


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


def test_a_png_is_written_whole(tmp_path: pathlib.Path) -> None:
    path = save_png(bands(), tmp_path / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_shares_have_a_panel_per_kind_in_percent() -> None:
    shown = [axes for axes in shares().axes if axes.get_visible()]
    assert len(shown) == 5
    assert [round(float(y), 6) for y in shown[0].lines[0].get_ydata()] == [0.0, 10.0, 20.0]


@pytest.mark.parametrize("make", ALL)
def test_dark_is_light_on_dark(make: Callable[[Theme], Figure]) -> None:
    for theme in (LIGHT, DARK):
        figure = make(theme)
        assert to_hex(figure.get_facecolor()).upper() == theme.background
        assert all(to_hex(axes.xaxis.label.get_color()).upper() == theme.text for axes in figure.axes)


@pytest.mark.parametrize("make", ALL)
def test_svg_is_whole_and_the_same_every_time(make: Callable[[], Figure]) -> None:
    first = svg(make())
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert first == svg(make())
    assert data_uri(make()).startswith("data:image/svg+xml;base64,")


def test_size_in_css_pixels() -> None:
    assert pixels(bands()) == (730, 470)


def test_dots_are_at_their_values() -> None:
    (axes,) = dots().axes
    found = [
        list(line.get_xdata()) for line in axes.lines if line.get_marker() in "os" and len(line.get_xdata())
    ]
    assert [70.0] in found
    assert [75.0, 80.0] in found
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]


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
