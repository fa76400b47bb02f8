"""What the spectral methods share: task vectors in float64, singular triples, polar factors."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.checks import check_scale
from sta_lightning.arithmetic.linear import scaled_sum
from sta_lightning.arithmetic.method import VectorMethod
from sta_lightning.arithmetic.problem import Block
from sta_lightning.arithmetic.states import to_double

_EPS = torch.finfo(torch.float64).eps


class Triples(NamedTuple):
    """Some singular values of a matrix, largest first, and vectors ``[m, k]`` and ``[n, k]``."""

    u: Tensor
    s: Tensor
    v: Tensor


def double_deltas(block: Block) -> Iterator[Tensor]:
    """The task vectors, one at a time, in float64: exact for models of like exponents."""
    origin = to_double(block.origin)
    for finetuned in block.finetuned:
        yield to_double(finetuned) - origin


def total_delta(block: Block) -> Tensor:
    """The sum of the task vectors in float64."""
    total = torch.zeros_like(to_double(block.base))
    for delta in double_deltas(block):
        total += delta
    return total


def triples(matrix: Tensor, keep: int | None = None, magnitude: float = 0.0) -> Triples:
    """The largest singular triples of a matrix.

    A singular value that is zero to the precision of float64 has no vectors of its own: a library
    returns any that are orthogonal to the others. Here it is exactly zero, and so are its vectors.

    Args:
        matrix: float64 ``[m, n]``.
        keep: how many triples; None for all min(m, n).
        magnitude: of what the matrix was computed from, where that was larger than the matrix is
            itself.
    """
    if not matrix.numel():
        rows, columns, rank = *matrix.shape, min(matrix.shape)
        return Triples(*(matrix.new_zeros(shape) for shape in ((rows, rank), (rank,), (columns, rank))))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    defined = s > max(matrix.shape) * _EPS * max(float(s[0]), magnitude)
    u, s, v = u * defined, s * defined, vh.mT * defined
    return Triples(u[:, :keep], s[:keep], v[:, :keep])


def joined(parts: Sequence[Triples]) -> Triples:
    """The triples of several matrices of one shape, side by side."""
    return Triples(
        torch.cat([part.u for part in parts], dim=1),
        torch.cat([part.s for part in parts]),
        torch.cat([part.v for part in parts], dim=1),
    )


def orthogonalised(vectors: Tensor) -> Tensor:
    """The polar factor of some unit vectors: P Q^T for their singular value decomposition P S Q^T.

    Of all matrices with orthonormal columns the nearest to the vectors. Where these depend on each
    other it is zero beside what they span (the partial isometry). Vectors that differ in less than
    half the digits of float64 count as dependent: rounding decides what little they differ in.

    Args:
        vectors: float64 ``[m, k]``, a vector of length one, or of zeros, in every column.

    Returns:
        Float64 ``[m, k]``.
    """
    if not vectors.numel():
        return vectors
    p, s, qh = torch.linalg.svd(vectors, full_matrices=False)
    factor: Tensor = (p * (s > math.sqrt(_EPS) * s[0])) @ qh
    return factor


class Spectral(VectorMethod):
    """A method that works on the singular values of every matrix and averages the other tensors.

    A matrix is a tensor of two dimensions, unless it is a text projection.
    """

    scale: float

    coefficient: ClassVar[str | None] = "scale"
    scope = "tensor"

    def __post_init__(self) -> None:
        check_scale(self.scale)

    @abstractmethod
    def spectral(self, block: Block) -> Tensor:
        """The merged task vector of a matrix, before ``scale``: float64 ``[m, n]``."""

    @override
    def vector(self, block: Block, state: Any) -> Tensor:
        if block.base.dim() != 2 or "text_projection" in block.name:
            return scaled_sum(block, self.scale / len(block.finetuned))
        return (self.scale * self.spectral(block)).to(block.base)
