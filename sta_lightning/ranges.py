"""Settings that are numbers: where each must lie, said once, and known without importing torch."""

from __future__ import annotations

import dataclasses
import numbers
from dataclasses import dataclass, field
from typing import Any

from sta_lightning.errors import StaError


@dataclass(frozen=True)
class Range:
    """Where a number must lie.

    Attributes:
        interval: as it is written: ``"[0, 1)"``, ``"(0, inf)"``.
        what: what to call the number in a message; empty for the setting's name.
        hint: said after it.
        whole: whether it must be an integer.
    """

    interval: str
    what: str = ""
    hint: str = ""
    whole: bool = False

    def __str__(self) -> str:
        """In words: ``a number in [0, 1)``."""
        if self.interval == FINITE.interval:
            return "a finite number"
        return f"{'an integer' if self.whole else 'a number'} in {self.interval}"

    def check(self, value: object, name: str = "") -> float:
        """A number as a float.

        Args:
            value: what was given.
            name: the setting's name.

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
        raise StaError(f"{self.what or name} must be {self}, and is {value!r}.{self.hint and ' '}{self.hint}")


FINITE = Range("(-inf, inf)")
"""Any number, such as a coefficient."""

SHARE = Range("[0, 1]", "p", "0 keeps all but the smallest, 1 keeps none; the paper's value is 0.7.")
"""The quantile p of Eq. 15."""


def number(default: float | None, interval: str, what: str = "", hint: str = "") -> Any:
    """A dataclass's field for a number, see :class:`Range`; ``None`` is allowed if the default."""
    return _ranged(default, Range(interval, what, hint))


def whole(default: int, interval: str, what: str = "", hint: str = "") -> Any:
    """A dataclass's field for an integer, see :class:`Range`."""
    return _ranged(default, Range(interval, what, hint, whole=True))


def finite(default: float) -> Any:
    """A dataclass's field for any number, see :data:`FINITE`."""
    return _ranged(default, FINITE)


def share(default: float) -> Any:
    """A dataclass's field for the quantile p, see :data:`SHARE`."""
    return _ranged(default, SHARE)


def _ranged(default: float | None, within: Range) -> Any:
    return field(default=default, metadata={"range": within})


def range_of(setting: dataclasses.Field[Any]) -> Range | None:
    """Where a field's value must lie, if that is said."""
    return setting.metadata.get("range")


def check_ranges(settings: Any) -> None:
    """Refuse, by a StaError, a value of a dataclass that lies outside its field's range."""
    for setting in dataclasses.fields(settings):
        value, within = getattr(settings, setting.name), range_of(setting)
        if within is not None and (value is not None or setting.default is not None):
            within.check(value, setting.name)
