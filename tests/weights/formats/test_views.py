"""Joined, cut and transposed tensors give, in pieces, what torch gives of the whole."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sta_lightning.arithmetic.sources import MemoryTensor, whole
from sta_lightning.errors import StaError
from sta_lightning.weights.formats.views import Joined, Rows, Transposed

MATRIX = torch.arange(35.0).view(7, 5)


@given(st.integers(0, 34), st.integers(0, 34), st.sampled_from([torch.float32, torch.float64]))
def test_pieces(one: int, other: int, dtype: torch.dtype) -> None:
    piece = slice(min(one, other), max(one, other))
    joined = Joined(*(MemoryTensor(part) for part in MATRIX.split([2, 1, 4])))
    assert joined.shape == MATRIX.shape
    assert torch.equal(joined.read(piece, dtype), MATRIX.reshape(-1)[piece].to(dtype))
    turned = Transposed(MemoryTensor(MATRIX))
    assert turned.shape == (5, 7)
    assert torch.equal(turned.read(piece, dtype), MATRIX.t().reshape(-1)[piece].to(dtype))


@given(st.integers(0, 7), st.integers(0, 7))
def test_rows(one: int, other: int) -> None:
    start, stop = min(one, other), max(one, other)
    assert torch.equal(whole(Rows(MemoryTensor(MATRIX), start, stop)), MATRIX[start:stop])
    assert torch.equal(whole(Rows(MemoryTensor(MATRIX[:, 0]), start, stop)), MATRIX[start:stop, 0])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(StaError, match="differ in type or width"):
        Joined(MemoryTensor(MATRIX), MemoryTensor(MATRIX[:, :4]))
    with pytest.raises(StaError, match="differ in type or width"):
        Joined(MemoryTensor(MATRIX), MemoryTensor(MATRIX.double()))
    with pytest.raises(StaError, match="must be a matrix"):
        Transposed(MemoryTensor(MATRIX[0]))
