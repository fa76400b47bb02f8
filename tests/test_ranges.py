"""Where a setting's number must lie: intervals as they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from sta_lightning.errors import StaError
from sta_lightning.ranges import SHARE, Range, check_ranges, finite, number, range_of, share, whole, word


@dataclass(frozen=True)
class Settings:
    keep: float = number(0.2, "(0, 1]", "keep, a share,", "0.2 is usual.")
    clamp: float | None = number(None, "[0, 0.5)")
    count: int = whole(2, "[1, inf)")
    scale: float = finite(1.0)
    p: float = share(0.7)
    merge: str = word("mean", Literal["mean", "sum"])
    tall: float | Mapping[str, float] = number(0.4, "[0, 1]", by_task=True)
    free: Any = None

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.mark.parametrize("interval", ["[0, 1]", "[0, 1)", "(0, 1]", "(0, 1)", "[0, inf)", "(-inf, inf)"])
def test_ends_count_as_their_brackets_say(interval: str) -> None:
    low, high = (float(end) for end in interval[1:-1].split(", "))
    for value in (-1, -1e-300, 0, 5e-324, 0.5, 1, 1 + 1e-15, 7, math.inf, -math.inf, math.nan):
        inside = (
            low < value < high or (value, interval[0]) == (low, "[") or (value, interval[-1]) == (high, "]")
        )
        if inside:
            assert Range(interval).check(value, "x") == value
        else:
            with pytest.raises(StaError, match=r"^x must be a (finite )?number"):
                Range(interval).check(value, "x")


@pytest.mark.parametrize("value", [True, "0.5", None, [0.5], 0.5j, np.array([0.5])])
def test_what_is_no_number(value: object) -> None:
    with pytest.raises(StaError, match=r"^p must be a number in \[0, 1\], and is "):
        SHARE.check(value)
    assert SHARE.check(np.float32(0.5)) == 0.5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"keep": 0}, "keep, a share, must be a number in (0, 1], and is 0. 0.2 is usual."),
        ({"keep": None}, "keep, a share, must be a number in (0, 1], and is None. 0.2 is usual."),
        ({"clamp": 0.5}, "clamp must be a number in [0, 0.5), and is 0.5."),
        ({"count": 0}, "count must be an integer in [1, inf), and is 0."),
        ({"count": 2.0}, "count must be an integer in [1, inf), and is 2.0."),
        ({"scale": math.nan}, "scale must be a finite number, and is nan."),
        ({"merge": "median"}, "merge='median' was asked for; choose one of 'mean', 'sum'."),
        ({"merge": ["mean"]}, "merge=['mean'] was asked for; choose one of 'mean', 'sum'."),
        ({"tall": {"a": 0, "b": 2}}, "tall of task 'b' must be a number in [0, 1], and is 2."),
        ({"keep": {"a": 0.5}}, "keep, a share, must be a number in (0, 1], and is {'a': 0.5}. 0.2 is usual."),
        ({"p": 1.3}, "p must be a number in [0, 1], and is 1.3. " + SHARE.hint),
    ],
)
def test_a_field_says_where_its_value_lies(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(StaError) as raised:
        Settings(**given)
    assert str(raised.value) == expected


def test_what_lies_within_is_kept_as_it_is() -> None:
    made = Settings(keep=1, clamp=0, scale=-3)
    assert (made.keep, made.clamp, made.count, made.scale, made.p) == (1, 0, 2, -3, 0.7)
    assert Settings(clamp=None).clamp is None
    assert range_of(Settings.__dataclass_fields__["free"]) is None
