"""Names of tensors become layers and kinds; shares keep their place."""

import csv
import io

import numpy as np
import pytest

from sta_lightning.report.selection import Selection, selection_figure, split_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer.resblocks.11.mlp.c_fc.weight", (11, "mlp.c_fc.weight")),
        ("visual.transformer.resblocks.0.ln_1.weight", (0, "ln_1.weight")),
        ("blocks.3.attn.qkv.weight", (3, "attn.qkv.weight")),
        ("class_embedding", (None, "class_embedding")),
        ("ln_pre.weight", (None, "ln_pre.weight")),
    ],
)
def test_split_name(name: str, expected: tuple[int | None, str]) -> None:
    assert split_name(name) == expected


def selection(fc: str = "mlp.c_fc.weight") -> Selection:
    kept = {f"transformer.resblocks.{layer}.{fc}": {"a": layer / 20, "b": 0.5} for layer in (10, 2, 0)}
    return Selection({**kept, "ln_post.weight": {"a": 0.1, "b": 0.2}})


def test_curve_is_ordered_by_layer_number_not_by_text() -> None:
    assert selection().curve("mlp.c_fc.weight", "a") == [(0, 0.0), (2, 0.1), (10, 0.5)]
    assert selection().tasks == ["a", "b"]


def test_tensors_outside_the_blocks_are_no_kind_but_are_in_the_csv() -> None:
    assert selection().main_kinds() == ["mlp.c_fc.weight"]
    rows = list(csv.reader(io.StringIO(selection().csv())))
    assert rows[0] == ["tensor", "layer", "kind", "task", "share_kept"]
    assert ["ln_post.weight", "", "ln_post.weight", "b", "0.200000"] in rows
    assert len(rows) == 1 + 4 * 2


def test_main_kinds_are_the_papers_or_all() -> None:
    kept = {f"blocks.0.{kind}": {"a": 0.3} for kind in ("norm1.bias", "mlp.fc1.weight", "norm1.weight")}
    assert Selection(kept).main_kinds() == ["norm1.weight", "mlp.fc1.weight"]
    assert selection("odd.weight").main_kinds() == ["odd.weight"]


KEPT = {
    "conv1.weight": {"digits": 0.25, "signs": 0.5},
    "transformer.resblocks.0.ln_1.weight": {"digits": 0.1, "signs": 0.2},
    "transformer.resblocks.1.ln_1.weight": {"digits": 0.3, "signs": 0.4},
    "transformer.resblocks.1.ln_1.bias": {"digits": 0.3, "signs": 0.4},
    "blocks.10.mlp.fc1.weight": {"digits": 1.0},
}


def test_the_figure_has_a_panel_a_kind_and_a_line_a_task() -> None:
    figure = selection_figure(Selection(KEPT), title="Kept")
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == [
        "ln_1.weight (norm before attention)",
        "mlp.fc1.weight",
    ]
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in panels[0].get_lines()}
    assert lines == {"digits": [10, 30], "signs": [20, 40]}, "percent"
    figure.canvas.draw()


@pytest.mark.parametrize("kept", [{}, {"conv1.weight": {"digits": 0.5}}])
def test_without_blocks_there_is_no_kind_to_draw(kept: dict[str, dict[str, float]]) -> None:
    assert Selection(kept).main_kinds() == []


def test_unknown_weights_are_drawn_and_nine_kinds_at_most() -> None:
    kept = {f"blocks.0.part{number}.{end}": {"a": 0.3} for number in range(12) for end in ("bias", "weight")}
    assert Selection(kept).main_kinds() == [f"part{number}.weight" for number in range(9)]


def test_the_table_has_a_row_a_tensor_in_percent() -> None:
    lines = Selection(KEPT).grid().markdown().splitlines()[2:]
    assert lines[:3] == ["| tensor | digits | signs |", "|---|---:|---:|", "| conv1.weight | 25.0 | 50.0 |"]
    assert lines[-1] == "| blocks.10.mlp.fc1.weight | 100.0 | – |"
