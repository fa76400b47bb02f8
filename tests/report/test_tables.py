"""One table in its three forms."""

import csv
import io

import pytest

from sta_lightning.report import Row, Table


def example() -> Table:
    return Table(
        title="Accuracy",
        columns=("method", "digits", "average"),
        rows=(
            Row("zero-shot", (99.0, 99.0), compete=False),
            Row("a|b", (81.234, 70.0)),
            Row("c", (81.2341, None)),
            Row("d", (12.0, 70.5)),
        ),
        best={"digits": "high", "average": "high"},
        note="A note.",
    )


def test_markdown_marks_the_best_competing_value_and_escapes_bars() -> None:
    text = example().markdown()
    assert "| zero-shot | 99.00 | 99.00 |" in text
    assert "| a\\|b | **81.23** | 70.00 |" in text
    assert "| c | **81.23** | – |" in text  # equal at the shown precision
    assert "| d | 12.00 | **70.50** |" in text
    assert text.endswith("A note.\n")
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {4}


def test_csv_keeps_full_precision_and_reads_back() -> None:
    rows = list(csv.reader(io.StringIO(example().csv())))
    assert rows[0] == ["method", "digits", "average"]
    assert rows[3] == ["c", "81.2341", ""]
    assert len(rows) == 5


def test_terminal_columns_line_up() -> None:
    lines = example().terminal().splitlines()
    header, zero, best = lines[2], lines[4], lines[5]
    assert best.index("81.23*") + len("81.23") == zero.index("99.00") + len("99.00")
    assert header.index("digits") + len("digits") == zero.index("99.00") + len("99.00")


def test_lower_can_be_better() -> None:
    table = Table("t", ("m", "x"), (Row("a", (2.0,)), Row("b", (1.0,))), best={"x": "low"})
    assert "| b | **1.00** |" in table.markdown()


def test_a_single_competitor_is_not_marked() -> None:
    table = Table("t", ("m", "x"), (Row("a", (2.0,)), Row("b", (9.0,), compete=False)), best={"x": "high"})
    assert "**2" not in table.markdown()


def test_a_row_of_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="row 'a' has 2 values"):
        Table("t", ("m", "x"), (Row("a", (1.0, 2.0)),))


def test_best_of_an_unknown_column_is_refused() -> None:
    with pytest.raises(ValueError, match="no column"):
        Table("t", ("m", "x"), (Row("a", (1.0,)),), best={"y": "high"})
