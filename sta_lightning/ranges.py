"""Settings: where a number must lie, which words there are; known without importing torch."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sta_lightning.errors import StaError


@dataclass(frozen=True)
class Range:
    """Where a number must lie.

    Attributes:
        interval: as it is written: ``"[0, 1)"``, ``"(0, inf)"``.
        what: what to call the number in a message; empty for the setting's name.
        hint: said after it.
        whole: whether it must be an integer.
        by_task: whether there may be one for every task, in a mapping.
    """

    interval: str
    what: str = ""
    hint: str = ""
    whole: bool = False
    by_task: bool = False

    def __str__(self) -> str:
        """In words: ``a number in [0, 1)``."""
        if self.interval == FINITE.interval:
            return "a finite number"
        return f"{'an integer' if self.whole else 'a number'} in {self.interval}"

    def check(self, value: object, name: str = "", task: object = None) -> float:
        """A number as a float.

        Args:
            value: what was given.
            name: the setting's name.
            task: whose it is, where every task has its own.

        Raises:
            StaError: if it is no number in the interval.
        """
        low, high = (float(bound) for bound in self.interval[1:-1].split(","))
        kind = int if self.whole else numbers.Real
        if not isinstance(value, bool) and isinstance(value, kind):
            number = float(value)
            above = low < number or (low == number and self.interval[0] == "[")
            below = number < high or (number == high and self.interval[-1] == "]")
            if above and below:
                return number
        whose = "" if task is None else f" of task '{task}'"
        hint = f" {self.hint}" if self.hint else ""
        raise StaError(f"{self.what or name}{whose} must be {self}, and is {value!r}.{hint}")


@dataclass(frozen=True)
class Words:
    """Which words a setting takes, or ``True`` and ``False``."""

    words: tuple[object, ...]

    def __str__(self) -> str:
        """In words: ``one of 'mean', 'sum'``."""
        return f"one of {', '.join(map(repr, self.words))}"

    def check(self, value: object, name: str) -> None:
        """Refuse, by a StaError, what is none of them."""
        if not isinstance(value, (str, bool)) or value not in self.words:
            raise StaError(f"{name}={value!r} was asked for; choose {self}.")


YesNo = Literal[True, False]


FINITE = Range("(-inf, inf)")
"""Any number, such as a coefficient."""

SHARE = Range("[0, 1]", "p", "0 keeps all but the smallest, 1 keeps none; the paper's value is 0.7.")
"""The quantile p of Eq. 15."""


def number(
    default: float | None, interval: str, what: str = "", hint: str = "", by_task: bool = False
) -> Any:
    """A dataclass's field for a number, see :class:`Range`; ``None`` is allowed if the default."""
    return _ranged(default, Range(interval, what, hint, by_task=by_task))


def whole(default: int, interval: str, what: str = "", hint: str = "") -> Any:
    """A dataclass's field for an integer, see :class:`Range`."""
    return _ranged(default, Range(interval, what, hint, whole=True))


def finite(default: float) -> Any:
    """A dataclass's field for any number, see :data:`FINITE`."""
    return _ranged(default, FINITE)


def share(default: float) -> Any:
    """A dataclass's field for the quantile p, see :data:`SHARE`."""
    return _ranged(default, SHARE)


def word(default: str | bool | None, literal: Any) -> Any:
    """A dataclass's field for one of the words of a ``Literal``, see :class:`Words`."""
    return _ranged(default, Words(get_args(literal)))


def _ranged(default: object, within: Range | Words) -> Any:
    return field(default=default, metadata={"range": within})


def range_of(setting: dataclasses.Field[Any]) -> Range | Words | None:
    """Where a field's value must lie, if that is said."""
    return setting.metadata.get("range")


def check_ranges(settings: Any) -> None:
    """Refuse, by a StaError, a value of a dataclass that lies outside its field's range."""
    for setting in dataclasses.fields(settings):
        value, within = getattr(settings, setting.name), range_of(setting)
        if within is not None and (value is not None or setting.default is not None):
            check_setting(value, setting.name, within)


def check_setting(value: object, name: str, within: Range | Words) -> None:
    """Refuse, by a StaError, what lies outside, of a mapping by task each."""
    if isinstance(value, Mapping) and isinstance(within, Range) and within.by_task:
        for task, one in value.items():
            within.check(one, name, task)
    else:
        within.check(value, name)


def check_layers(layers: Mapping[str, object]) -> None:
    """Refuse, by a StaError, coefficients by pattern that are no numbers, or none at all."""
    for pattern, given in layers.items():
        for one in given if isinstance(given, (list, tuple)) and given else [given]:
            FINITE.check(one, f"scale_layers of '{pattern}'")
