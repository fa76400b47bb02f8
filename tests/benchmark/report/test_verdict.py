"""Who wins, and when nothing can be said."""

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from sta_lightning.benchmark.report.verdict import Verdict


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [
        ([3.0, 3.2, 3.4], "wins"),
        ([-3.0, -3.2, -3.4], "loses"),
        ([0.3, 0.3, 0.3], "ties"),  # without any spread, and yet too little
        ([0.5, 0.5, 0.5], "ties"),  # the margin itself is not enough
        ([0.6, 0.6, 0.6], "wins"),
        ([4.0, -1.0, 0.0], "ties"),  # d = 1 is less than two standard errors
        ([1.0, 5.0], "ties"),  # std 2.83, s = 2, d = 3 < 4
        ([2.9, 3.1], "wins"),
        ([0.0, 0.0, 0.0], "ties"),
    ],
)
def test_outcome_over_several_seeds(differences: list[float], outcome: str) -> None:
    assert Verdict(differences).outcome == outcome
    mirrored = {"wins": "loses", "loses": "wins", "ties": "ties"}[outcome]
    assert Verdict([-d for d in differences]).outcome == mirrored
    assert Verdict(differences, lower_is_better=True).outcome == mirrored


def test_standard_error_is_that_of_the_mean_difference() -> None:
    verdict = Verdict([1.0, 2.0, 3.0])
    assert verdict.difference.mean == 2.0
    assert verdict.error == pytest.approx(1 / 3**0.5)
    assert verdict.outcome == "ties"  # 2.0 ± 0.6, but of three seeds
    assert Verdict([1.0, 2.0, 3.0, 1.0, 2.0, 3.0]).outcome == "wins"


@given(st.lists(st.floats(-20, 20).map(lambda value: round(value, 2)), min_size=2, max_size=8))
def test_who_wins_is_students_test(differences: list[float]) -> None:
    if len(set(differences)) == 1:
        return
    found = ttest_1samp(differences, 0.0)
    significant = found.pvalue < 0.05 and abs(fmean(differences)) > 0.5
    wanted = ("wins" if found.statistic > 0 else "loses") if significant else "ties"
    assert Verdict(differences).outcome == wanted


@pytest.mark.parametrize(("difference", "outcome"), [(5.0, "above"), (-0.1, "below"), (0.0, "level")])
@pytest.mark.parametrize("lower", [False, True])
def test_one_seed_tells_a_side_and_no_winner(difference: float, outcome: str, lower: bool) -> None:
    verdict = Verdict([difference], lower_is_better=lower)
    assert verdict.error is None
    assert verdict.outcome == outcome
    assert verdict.said == ""
    assert "wins" not in verdict.cell


def test_words() -> None:
    verdict = Verdict([-3.6, -3.2, -2.8])
    assert f"{verdict.lies} the random mask{verdict.said}" == (
        "3.2 ± 0.2 points below the random mask (loses)"
    )
    assert verdict.cell == "−3.2 ± 0.2 loses"
    assert Verdict([3.2]).cell == "+3.2"


def test_one_seed_has_the_error_of_its_test_images() -> None:
    verdict = Verdict([-3.2], image_error=0.4)
    assert (verdict.error, verdict.outcome) == (None, "below")
    assert verdict.lies == "3.2 ± 0.4 points below"
    assert verdict.said == " (on the same test images: more than two standard errors)"
    assert verdict.cell == "−3.2 ± 0.4"
