"""One table of measured numbers in its three forms."""

import csv
import io

import pytest

from sta_lightning.report.document import Document, Section, html
from sta_lightning.report.grid import Column, Grid, Line, Number, markdown_text


def example() -> Grid:
    return Grid(
        name="example",
        title="Accuracy <in percent>",
        head="method",
        columns=(
            Column("target", "digits", "low"),
            Column("control", "digits", "high"),
            Column("settings"),
        ),
        lines=(
            Line("zero-shot", (Number(1.0, 0.0), Number(99.9, 0.0), None), compete=False, kind="reference"),
            Line("a & b", (Number(20.04, 0.5, 9.2), Number(90.0, 1.0), "λ = 0.3"), "tuned", kind="sta"),
            Line("c|d", (Number(19.96, 0.5), Number(95.5, 1.0), "p = 0.7"), "published"),
            Line("e*", (Number(30.0, 0.5), Number(93.0, 1.0), None)),
        ),
        note="Note <here>.",
        detail="setting",
    )


def html_of(grid: Grid) -> str:
    return html(Document("", "", "", (Section("s", "", (grid,)),)), {})


def test_ranks_are_those_of_what_is_shown() -> None:
    # 20.04 and 19.96 both read 20.0, and share the mark; the reference has none.
    assert example().ranks == {
        (1, 0): "best",
        (2, 0): "best",
        (3, 0): "second",
        (2, 1): "best",
        (3, 1): "second",
    }


def test_html_marks_by_element_and_escapes() -> None:
    text = html_of(example())
    assert "<strong>20.0</strong>" in text
    assert "<u>30.0</u>" in text
    assert "<strong>99.9</strong>" not in text
    assert "a &amp; b" in text
    assert "Accuracy &lt;in percent&gt;" in text
    assert "Note &lt;here&gt;." in text
    assert '<span class="paper"> (9.20)</span>' in text
    assert 'colspan="2"' in text
    assert "bold: the best" in text


def test_markdown_has_as_many_cells_in_every_line() -> None:
    text = example().markdown()
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {5}
    assert "| **a &amp; b, tuned** | **20.0 ± 0.5** (9.20) | 90.0 ± 1.0 | λ = 0.3 |" in text
    assert "| e\\* | *30.0 ± 0.5* | *93.0 ± 1.0* | – |" in text
    assert "digits: target\u00a0↓" in text


def test_csv_has_every_digit() -> None:
    rows = list(csv.reader(io.StringIO(example().csv())))
    assert rows[0] == [
        *("method", "setting", "digits: target", "digits: target std", "digits: target paper"),
        *("digits: control", "digits: control std", "settings"),
    ]
    assert rows[2] == ["a & b", "tuned", "20.04", "0.5", "9.2", "90.0", "1.0", "λ = 0.3"]
    assert rows[1] == ["zero-shot", "", "1.0", "0.0", "", "99.9", "0.0", ""]


def test_one_seed_has_no_spread() -> None:
    grid = Grid("x", "t", "m", (Column("a", better="high"),), (Line("one", (Number(1.25),)),))
    assert "±" not in grid.markdown() + html_of(grid)
    assert grid.csv() == "m,a\none,1.25\n"
    assert grid.ranks == {}  # nobody to compete with


def test_terminal_columns_line_up() -> None:
    lines = example().terminal().splitlines()
    heads, reference, best = lines[3], lines[5], lines[6]
    assert best.index("20.0 ± 0.5*") + len("20.0 ± 0.5") == reference.index("1.0 ± 0.0") + len("1.0 ± 0.0")
    assert heads.index("target") + len("target") == reference.index("1.0 ± 0.0") + len("1.0 ± 0.0")
    assert "99.9 ± 0.0*" not in reference


def test_markdown_shows_what_it_is_given() -> None:
    assert markdown_text("a|b *c* <d> [e] `f` snake_case\nnext") == (
        "a\\|b \\*c\\* &lt;d&gt; \\[e\\] \\`f\\` snake_case next"
    )


def test_a_row_of_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="row 'one' has 0 cells"):
        Grid("x", "t", "m", (Column("a"),), (Line("one", ()),))
