"""Who wins: a difference seed by seed, held against its spread over the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from scipy.stats import t as student

from sta_lightning.benchmark import statistics
from sta_lightning.report.grid import Number

Outcome = Literal["wins", "ties", "loses", "above", "below", "level"]
"""The last three: there is one seed, and nothing can be said of the spread."""

CONFIDENCE = 0.95
MARGIN = 0.5
RULE = (
    "The difference of two averages is taken seed by seed. A method wins if zero lies below the "
    f"{CONFIDENCE:.0%} interval of its mean (Student's t over the seeds: 4.3 standard errors to each "
    f"side with three seeds, 12.7 with two) and it is larger than {MARGIN:g} points; it loses if the "
    "same holds the other way round, and ties otherwise. Many pairs are compared: one in twenty may "
    "win or lose by chance."
)
ONE_SEED = "With one seed there is no spread: only above or below is said, not who wins."


@dataclass(frozen=True)
class Verdict:
    """What a difference says.

    Attributes:
        differences: own minus other in points, one a seed.
        lower_is_better: whether a smaller number is the better one, as for the accuracy on a
            forgotten task.
        image_error: standard error of one seed's difference, image by image on the same test
            images, in points; ``None`` for several seeds or where it was not measured.
    """

    differences: Sequence[float]
    lower_is_better: bool = False
    image_error: float | None = None

    @cached_property
    def difference(self) -> Number:
        """The mean over the seeds and its spread."""
        return Number.of(self.differences)

    @property
    def error(self) -> float | None:
        """Standard error of the mean difference over the seeds; ``None`` for one seed."""
        std = self.difference.std
        return None if std is None else std / math.sqrt(len(self.differences))

    @property
    def known_error(self) -> float | None:
        """Standard error over the seeds, or else over the test images."""
        return self.image_error if self.error is None else self.error

    @property
    def outcome(self) -> Outcome:
        """Wins, ties or loses; with one seed above, below or level."""
        gain = self.difference.mean
        if self.error is None:
            return "above" if gain > 0 else "below" if gain < 0 else "level"
        if self.lower_is_better:
            gain = -gain
        # Few seeds make the standard error itself uncertain: Student's t, not the normal
        # distribution.
        errors = float(student.ppf((1 + CONFIDENCE) / 2, len(self.differences) - 1))
        threshold = max(errors * self.error, MARGIN)
        return "wins" if gain > threshold else "loses" if gain < -threshold else "ties"

    @property
    def said(self) -> str:
        """`` (loses)``; of one seed, what the test images say, if they were compared."""
        if self.error is not None:
            return f" ({self.outcome})"
        if self.image_error is None:
            return ""
        evidence = statistics.verdict(self.difference.mean, self.image_error)
        return f" (on the same test images: {evidence})"

    @property
    def lies(self) -> str:
        """``3.2 ± 0.4 points below``."""
        side = "above" if self.difference.mean >= 0 else "below"
        return f"{abs(self.difference.mean):.1f}{self._spread} points {side}"

    @property
    def cell(self) -> str:
        """For a table: ``+3.2 ± 0.4 wins``."""
        word = "" if self.error is None else f" {self.outcome}"
        # A minus sign is as wide as a plus, a hyphen is not.
        return f"{self.difference.mean:+.1f}{self._spread}{word}".replace("-", "−")

    @property
    def _spread(self) -> str:
        return "" if self.known_error is None else f" ± {self.known_error:.1f}"
