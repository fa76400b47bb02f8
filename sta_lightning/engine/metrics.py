"""What an evaluation can measure; no part of a fit or a merge depends on more than the names."""

from typing import Literal

MetricName = Literal["macro", "top5", "per_class", "confusion"]
"""Beside accuracies: their mean over the classes, top-5, one a class, what is taken for what."""
