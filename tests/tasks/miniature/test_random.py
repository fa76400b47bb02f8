"""The random numbers: the published SplitMix64 recipe, in Python's own whole numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sta_lightning.tasks.miniature.random import Uniforms, image_keys, mix

WORD = (1 << 64) - 1


def splitmix_output(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


@given(st.lists(st.integers(0, WORD), min_size=1, max_size=20))
def test_mix_is_splitmix64(words: list[int]) -> None:
    assert mix(np.asarray(words, dtype=np.uint64)).tolist() == [splitmix_output(word) for word in words]


@given(st.integers(0, WORD), st.integers(0, 100))
def test_draws_follow_the_counter(key: int, counter: int) -> None:
    drawn = Uniforms(np.asarray([key], dtype=np.uint64), counter).many(3)[0]
    expected = [
        (splitmix_output((key + (counter + 1 + i) * 0x9E3779B97F4A7C15) & WORD) >> 40) / 2**24
        for i in range(3)
    ]
    assert drawn.tolist() == expected


def test_draws_are_uniform_and_keys_distinct() -> None:
    keys = image_keys("any/name", np.arange(20_000))
    assert len(np.unique(keys)) == len(keys)
    values = Uniforms(keys)()[:, 0]
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert (
        (counts - 1000.0) ** 2 / 1000
    ).sum() < 50  # chi square, 19 degrees of freedom: 1 in 10,000 lies above 50


def test_names_give_other_keys() -> None:
    assert not set(image_keys("1/digits/train", np.arange(1000))) & set(
        image_keys("1/digits/test", np.arange(1000))
    )


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64])
def test_pixels_are_the_bytes_of_the_words(count: int) -> None:
    key = image_keys("pixels", np.arange(2))
    words = [Uniforms(key)._bits(8)[row].tolist() for row in range(2)]
    octets = [[(word >> (8 * place)) & 255 for word in row for place in range(8)] for row in words]
    assert (Uniforms(key).pixels(count) * 256).tolist() == [row[:count] for row in octets]


def test_rows_continue_where_the_stream_is() -> None:
    stream = Uniforms(image_keys("rows", np.arange(5)))
    stream.many(4)
    part = stream.rows(np.asarray([3, 1]))
    np.testing.assert_array_equal(part.many(6), stream.many(6)[[3, 1]])
