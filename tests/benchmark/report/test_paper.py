"""The paper's numbers, found under the project's names of the data sets."""

import pytest

from sta_lightning.benchmark.report import paper
from tests.benchmark.report.synthetic import EMBEDDED, PAPER

ROWS = (
    *("average", "task_arithmetic", "ties", "dare+average", "dare+task_arithmetic", "dare+ties"),
    *("pcb", "sta_amp", "sta_lp_amp", "sta_lp"),
)


@pytest.mark.parametrize("row", ROWS)
def test_the_averages_are_those_of_the_columns(row: str) -> None:
    values = [paper.fusion(row, task, PAPER) for task in PAPER]
    assert None not in values
    average = paper.fusion(row, paper.AVERAGE, PAPER)
    # The paper's own averages are not always the means of its columns: that of STA LP+Amp is 0.06
    # off.
    assert average == pytest.approx(sum(values) / 6, abs=0.06)  # type: ignore[arg-type]


def test_single_numbers() -> None:
    assert paper.fusion("sta_lp", "stanford_cars", PAPER) == paper.fusion("sta_lp", "cars", PAPER) == 85.45
    assert paper.fusion("pcb", "average", PAPER) == 82.39
    assert paper.forgetting("sta_lp", "svhn", "target", PAPER, "imagenet") == 6.33
    assert paper.forgetting("sta_lp", "svhn", "control", PAPER, "imagenet") == 62.62
    assert paper.forgetting("pretrained", "average", "target", PAPER, "imagenet") == 51.41


def test_nothing_stands_beside_another_data_set() -> None:
    assert all(paper.fusion("sta_lp", task, EMBEDDED) is None for task in (*EMBEDDED, "average"))
    assert paper.forgetting("sta_lp", "digits", "target", EMBEDDED, "objects") is None
    assert paper.forgetting("sta_lp", "svhn", "control", PAPER, "objects") is None
    assert paper.fusion("tsv", "svhn", PAPER) is None
    assert paper.fusion(None, "svhn", PAPER) is None


def test_no_average_of_other_sets_of_tasks() -> None:
    assert paper.fusion("sta_lp", "average", PAPER[:5]) is None
    assert paper.fusion("sta_lp", "average", (*PAPER, "sun397")) is None
    assert paper.fusion("sta_lp", "svhn", PAPER[:5]) == 93.31
    assert paper.covers(tuple(reversed(PAPER)))
