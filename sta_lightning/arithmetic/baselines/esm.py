"""ESM: the output directions that a task vector moves most, weighted by how much, made orthogonal.

"Essential Subspace Merging", arXiv 2606.19164; written after the authors' code (kiddo127/ESM). Its
directions are the principal components of X delta^T, the change of a layer's outputs: eigenvectors
of delta G delta^T, so that Gram matrices of the inputs serve, and these come from training images;
the authors take test images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.baselines.tsv import Tsv
from sta_lightning.arithmetic.entries import Block, Entries
from sta_lightning.arithmetic.linear_layers import LinearLayerMethod
from sta_lightning.arithmetic.method import Survey
from sta_lightning.arithmetic.spectral import double_deltas, eigh, orthogonalised, triples
from sta_lightning.arithmetic.states import to_double
from sta_lightning.ranges import finite

# As published: the powers of the scales between tasks, columns and layers, and of the energies.
_CONSENSUS = 2
_ENERGY = 0.15


@dataclass(frozen=True)
class Esm(LinearLayerMethod):
    """ESM: polar factors of the tasks' essential directions U_i and of their U_i^T delta_i.

    Of each task the out // N directions of the largest energies lambda, each times (lambda / their
    mean)^0.15 (then divided by the mean of these). The coordinates are also multiplied by
    (|delta_i| / mean over tasks)^2, then every input by (its norm / mean over inputs)^2. The layer
    is twice the product of both polar factors, each times its mean singular value, and is
    multiplied by (its norm / mean over the layers of its kind)^2. Other matrices are merged by
    TSV-M, other tensors averaged.

    Args:
        scale: the coefficient of the merged vector; the authors search it on validation data.
    """

    scale: float = finite(1.0)

    title = "ESM"
    summary = "the output directions that the task vectors move most, orthogonal between the tasks"
    coefficient = "scale"
    source = "arXiv 2606.19164"

    @override
    def prepare(self, survey: Survey) -> dict[str, float]:
        """What every layer is multiplied with."""

        def look(entries: Entries) -> float | None:
            blocks = entries.blocks(whole=True) if entries.grams else iter(())
            norms = [
                float(torch.linalg.matrix_norm(to_double(LinearLayerMethod.vector(self, block, None))))
                for block in blocks
            ]
            return norms[0] if norms else None

        norms = {name: norm for name, norm in survey.each(look).items() if norm is not None}
        kinds: dict[str, list[float]] = {}
        for name, norm in norms.items():
            kinds.setdefault(_kind(name), []).append(norm)
        means = {kind: math.fsum(found) / len(found) for kind, found in kinds.items()}
        return {
            name: (norm / means[_kind(name)]) ** _CONSENSUS if means[_kind(name)] else 1.0
            for name, norm in norms.items()
        }

    @override
    def prepare_tensor(self, entries: Entries, prepared: dict[str, float]) -> float:
        return self.scale * prepared.get(entries.name, 1.0)

    @override
    def vector(self, block: Block, state: float) -> Tensor:
        return state * super().vector(block, None)

    @override
    def other(self, block: Block) -> Tensor:
        return Tsv().vector(block, None)

    @override
    def layer(self, block: Block, grams: list[Tensor]) -> Tensor:
        count = len(block.base) // len(block.finetuned)
        directions, coordinates, norms = [], [], []
        for delta, gram in zip(double_deltas(block), grams, strict=True):
            u, energies = essential(delta, gram, count)
            weights = (energies / energies.sum() * count).pow(_ENERGY) if energies.any() else energies
            weights = weights / weights.sum() * count if energies.any() else weights
            norms.append(float(torch.linalg.matrix_norm(delta)))
            directions.append(u * weights)
            coordinates.append((u * weights).mT @ delta * norms[-1] ** _CONSENSUS)
        if not any(norms):
            return torch.zeros_like(to_double(block.base))
        u = torch.cat(directions, dim=1)
        v = torch.cat(coordinates) / (math.fsum(norms) / len(norms)) ** _CONSENSUS
        columns = torch.linalg.vector_norm(v, dim=0)
        v = v * (columns / columns.mean()) ** _CONSENSUS if columns.any() else v
        rank, (rows, inputs) = count * len(norms), block.base.shape
        return 2 * _evened(u, min(rank, rows)) @ _evened(v, min(rank, inputs))


def essential(delta: Tensor, gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The directions that a layer's outputs move most in, and by how much in the mean square.

    Args:
        delta: float64 ``[out, in]``.
        gram: X^T X / rows, float64 ``[in, in]``.
        count: how many directions at most.

    Returns:
        Orthonormal ``[out, k]`` and energies ``[k]``, largest first; zero where there is none.
    """
    if len(delta) <= len(gram):
        values, vectors = eigh(delta @ gram @ delta.mT)
    else:
        lengths, axes = eigh(gram)
        vectors, roots, _ = triples(delta @ (axes * lengths.clamp(min=0).sqrt()), count)
        values = roots.square()
    values = values.where(values > len(delta) * torch.finfo(values.dtype).eps * values.max(), 0.0)
    return vectors[:, :count], values[:count]


def _evened(matrix: Tensor, rank: int) -> Tensor:
    """Its polar factor times the mean of so many singular values."""
    factor = orthogonalised(matrix)
    return factor * ((factor * matrix).sum() / max(rank, 1))


def _kind(name: str) -> str:
    """A layer's name without the numbers in it: that of the same layer in all blocks."""
    return ".".join(part for part in name.split(".") if not part.isdecimal())
