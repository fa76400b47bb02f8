"""What the spectral methods share: task vectors in float64, singular triples, polar factors."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.linear import scaled_sum
from sta_lightning.arithmetic.method import VectorMethod
from sta_lightning.arithmetic.states import to_double

_EPS = torch.finfo(torch.float64).eps

# Of a Gram matrix in float64 the eigenvectors down to this share of the largest eigenvalue are
# right to 1e-6 and better: those of singular values down to 3e-5 of the largest.
_DIGITS = 1e-9


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


def is_matrix(block: Block) -> bool:
    """Whether a tensor is one of those that are merged as matrices: no text projection."""
    return block.base.dim() == 2 and block.base.numel() > 0 and "text_projection" not in block.name


def total_delta(block: Block) -> Tensor:
    """The sum of the task vectors in float64."""
    total = torch.zeros_like(to_double(block.base))
    for delta in double_deltas(block):
        total += delta
    return total


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and eigenvectors in columns of a symmetric float64 ``[n, n]``."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0), vectors.flip(1)


def gram(rows: Tensor) -> Tensor:
    """X^T X of float64 X ``[m, n]``; the half above the diagonal is not computed but mirrored."""
    size = rows.shape[1]
    found = rows.new_empty(size, size)
    step = max(-(-size // 8), 128)
    for at in range(0, size, step):
        part = rows[:, at:].mT @ rows[:, at : at + step]
        found[at:, at : at + step] = part
        found[at : at + step, at:] = part.mT
    return found


def rounding(block: Block, models: int = 1) -> float:
    """How large the singular values are that rounding the weights gives to a sum of task vectors.

    A model is rounded once to the type of its entries, by at most half a unit in the last place: in
    the mean square by eps |w| / sqrt(12) or less. A matrix of independent errors is about as large
    as its longest row and its longest column together (Bandeira and van Handel 2016).

    Args:
        block: a matrix.
        models: how many task vectors are added up.
    """
    lengths = [float(torch.linalg.vector_norm(to_double(block.base), dim=dim).max()) for dim in (0, 1)]
    return torch.finfo(block.base.dtype).eps * math.sqrt(models / 12) * sum(lengths)


def triples(matrix: Tensor, keep: int | None = None, floor: float = 0.0) -> Triples:
    """The largest singular triples of a matrix.

    They come from the eigenvectors of the smaller of the two Gram matrices, in a third of the time
    of a singular value decomposition, unless squares have not the digits for the smallest of them.

    A singular value that is zero to the precision of float64 has no vectors of its own: a library
    returns any that are orthogonal to the others. Here it is exactly zero, and so are its vectors.

    Args:
        matrix: float64 ``[m, n]``.
        keep: how many triples; None for all min(m, n).
        floor: singular values up to this are zero too.
    """
    rank = min(matrix.shape)
    count = rank if keep is None else min(keep, rank)
    if not count:
        return Triples(*(matrix.new_zeros(shape) for shape in ((len(matrix), 0), (0,), (matrix.shape[1], 0))))
    if matrix.shape[0] < matrix.shape[1]:
        u, s, v = triples(matrix.mT, keep, floor)
        return Triples(v, s, u)
    values, vectors = eigh(gram(matrix))
    if float(values[count - 1]) > max(_DIGITS * float(values[0]), 4 * floor**2):
        v = vectors[:, :count]
        u = matrix @ v
        s = torch.linalg.vector_norm(u, dim=0)
        return Triples(u / s, s, v)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    defined = s > max(max(matrix.shape) * _EPS * float(s[0]), floor)
    u, s, v = u * defined, s * defined, vh.mT * defined
    return Triples(u[:, :count], s[:count], v[:, :count])


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
    if vectors.shape[0] < vectors.shape[1]:
        return orthogonalised(vectors.mT).mT
    values, q = eigh(gram(vectors))
    if float(values[-1]) > _DIGITS * float(values[0]):
        return vectors @ ((q * values.rsqrt()) @ q.mT)
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
    side_by_side = True

    @abstractmethod
    def spectral(self, block: Block) -> Tensor:
        """The merged task vector of a matrix, before ``scale``: float64 ``[m, n]``."""

    @override
    def vector(self, block: Block, state: Any) -> Tensor:
        if not is_matrix(block):
            return scaled_sum(block, self.scale / len(block.finetuned))
        return (self.scale * self.spectral(block)).to(block.base)
