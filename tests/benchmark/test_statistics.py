"""Sampling errors against closed forms and simulation."""

import numpy as np
import pytest

from sta_lightning.benchmark.statistics import paired_difference, standard_error, verdict


def test_standard_error_matches_simulation() -> None:
    accuracy, images = {"a": 60.0, "b": 90.0}, {"a": 200, "b": 500}
    generator = np.random.default_rng(0)
    drawn = [
        100 * generator.binomial(images[t], accuracy[t] / 100, size=200_000) / images[t] for t in ("a", "b")
    ]
    simulated = float(np.std((drawn[0] + drawn[1]) / 2))
    assert standard_error(accuracy, images) == pytest.approx(simulated, rel=0.01)


def test_certain_accuracies_have_no_error() -> None:
    assert standard_error({"a": 0.0, "b": 100.0}, {"a": 10, "b": 10}) == 0.0


def test_paired_difference_matches_simulation() -> None:
    """Two methods that agree on most images: the paired error is what repeated sampling shows."""
    generator = np.random.default_rng(1)
    seen, reported = [], []
    for _ in range(3000):
        first, second = {}, {}
        for task, (hard, size) in {"a": (0.3, 150), "b": (0.6, 80)}.items():
            shared = generator.random(size) > hard
            first[task] = shared | (generator.random(size) > 0.9)
            second[task] = shared
        difference, error = paired_difference(first, second)
        seen.append(difference)
        reported.append(error)
    assert float(np.sqrt(np.mean(np.square(reported)))) == pytest.approx(float(np.std(seen)), rel=0.05)
    assert float(np.mean(seen)) == pytest.approx(100 * (0.3 * 0.1 + 0.6 * 0.1) / 2, rel=0.05)


def test_equal_methods_do_not_differ() -> None:
    bits = {"a": np.array([True, False, True])}
    assert paired_difference(bits, bits) == (0.0, 0.0)
    assert "no difference" in verdict(0.0, 0.0)


def test_verdict_follows_the_size_of_the_difference() -> None:
    assert verdict(-2.5, 1.0).startswith("more than two")
    assert verdict(1.5, 1.0).startswith("between")
    assert "no difference" in verdict(-0.5, 1.0)
