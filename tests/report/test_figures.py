"""The figures hold the numbers, name their axes, and keep their legends off the data."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sta_lightning.report import (
    Curve,
    MethodResult,
    Selection,
    forgetting_figure,
    fusion_figure,
    save_png,
    selection_figure,
    sweep_figure,
)
from sta_lightning.report.style import COLOURS

TASKS = ("digits", "street_numbers")


def fusion() -> Figure:
    results = [
        MethodResult("zero-shot", {"digits": 50.0, "street_numbers": 30.0}, 1.5, reference=True),
        MethodResult("STA LP", {"digits": 80.0, "street_numbers": 70.0}, 1.0),
    ]
    return fusion_figure(results, title="Fusion")


def sweep() -> Figure:
    return sweep_figure(
        [
            Curve("STA LP", [0.0, 0.5, 1.0], [60.0, 70.0, 40.0], steps=True, chosen=0.5),
            Curve("task arithmetic", [0.2, 0.4], [50.0, 65.0], chosen=0.4),
        ],
        {"zero-shot": 40.0},
        title="Sweep",
        y_label="accuracy (%)",
    )


def forgetting() -> Figure:
    return forgetting_figure(
        TASKS,
        {"pretrained": [50.0, 30.0], "STA LP": [8.0, 9.0]},
        {"pretrained": [80.0, 80.0], "STA LP": [70.0, 60.0]},
        control_name="objects",
        title="Forgetting",
    )


def selection() -> Figure:
    kinds = ("ln_1.weight", "ln_2.weight", "mlp.c_fc.weight", "mlp.c_proj.weight", "attn.in_proj_weight")
    kept = {
        f"transformer.resblocks.{i}.{kind}": dict.fromkeys(TASKS, 0.1 * i) for i in range(3) for kind in kinds
    }
    return selection_figure(Selection(kept), title="Kept")


@pytest.mark.parametrize("make", [fusion, sweep, forgetting, selection])
def test_axes_are_named_and_legend_lies_outside(make: object, tmp_path: Path) -> None:
    figure: Figure = make()  # type: ignore[operator]
    path = save_png(figure, tmp_path / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert any("(%)" in axes.get_ylabel() or "(%)" in axes.get_xlabel() for axes in shown)
    assert all(axes.get_legend() is None for axes in shown)
    (legend,) = figure.legends
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    box = legend.get_window_extent(renderer)
    for axes in shown:
        assert not box.overlaps(axes.get_window_extent(renderer))
    assert {text.get_text() for text in legend.get_texts()}


def test_fusion_figure_shows_averages_and_every_task() -> None:
    (axes,) = fusion().axes
    assert [bar.get_width() for bar in axes.patches] == [40.0, 75.0]
    assert {"40.0 ± 1.5", "75.0 ± 1.0"} <= {text.get_text() for text in axes.texts}
    marks = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert marks["street numbers"] == [30.0, 70.0]


def test_sweep_figure_draws_masks_as_stairs_and_stars_the_choice() -> None:
    (axes,) = sweep().axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["STA LP"].get_drawstyle() == "steps-post"
    assert lines["task arithmetic"].get_drawstyle() == "default"
    stars = [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if line.get_marker() == "*" and len(line.get_xdata())
    ]
    assert stars == [(0.5, 70.0), (0.4, 65.0)]


def test_forgetting_figure_has_a_bar_for_every_number() -> None:
    target, control = forgetting().axes
    assert sorted(bar.get_height() for bar in target.patches) == [8.0, 9.0, 30.0, 50.0]
    assert sorted(bar.get_height() for bar in control.patches) == [60.0, 70.0, 80.0, 80.0]


def test_selection_figure_has_a_panel_per_kind() -> None:
    shown = [axes for axes in selection().axes if axes.get_visible()]
    assert len(shown) == 5
    assert [round(float(y), 6) for y in shown[0].lines[0].get_ydata()] == [0.0, 10.0, 20.0]


def test_colours_differ_in_lightness_or_hue_and_in_number_cover_six_tasks() -> None:
    assert len(set(COLOURS)) == len(COLOURS) >= 6
