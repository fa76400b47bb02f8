"""The figure and the table of shares kept."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from sta_lightning.callbacks.figures import by_kind, selection_figure, selection_table

KEPT = {
    "conv1.weight": {"digits": 0.25, "signs": 0.5},
    "transformer.resblocks.0.ln_1.weight": {"digits": 0.1, "signs": 0.2},
    "transformer.resblocks.1.ln_1.weight": {"digits": 0.3, "signs": 0.4},
    "transformer.resblocks.1.ln_1.bias": {"digits": 0.3, "signs": 0.4},
    "blocks.10.mlp.fc1.weight": {"digits": 1.0},
}


def test_tensors_are_sorted_by_kind_and_block() -> None:
    kinds = by_kind(KEPT)
    assert kinds["ln_1.weight"] == {"digits": {0: 0.1, 1: 0.3}, "signs": {0: 0.2, 1: 0.4}}
    assert kinds["mlp.fc1.weight"] == {"digits": {10: 1.0}}
    assert "weight" not in kinds


def test_the_figure_has_a_panel_a_kind_and_a_line_a_task() -> None:
    figure = selection_figure(KEPT)
    assert isinstance(figure, Figure)
    panels = [panel for panel in figure.axes if panel.get_title()]
    assert [panel.get_title() for panel in panels] == ["ln_1.weight", "mlp.fc1.weight"]
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in panels[0].get_lines()}
    assert lines == {"digits": [10, 30], "signs": [20, 40]}, "percent"
    figure.canvas.draw()


def test_nothing_to_draw() -> None:
    assert selection_figure({}) is None
    assert selection_figure({"conv1.weight": {"digits": 0.5}}) is None


def test_the_table() -> None:
    lines = selection_table(KEPT).splitlines()
    assert lines[:3] == ["| tensor | digits | signs |", "|---|---:|---:|", "| conv1.weight | 25.0 | 50.0 |"]
    assert lines[-1] == "| blocks.10.mlp.fc1.weight | 100.0 |  |"
