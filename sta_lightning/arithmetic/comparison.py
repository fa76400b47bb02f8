"""How the task vectors of several models compare, and which is a stranger to the pretrained one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from statistics import median

import torch
from torch import Tensor

from sta_lightning.arithmetic.entries import Block, Entries
from sta_lightning.arithmetic.normalization import block_of
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.spectral import double_deltas
from sta_lightning.arithmetic.states import piece_size
from sta_lightning.arithmetic.vectors import sign_counts
from sta_lightning.arithmetic.workers import Workers, usable_threads

LEAST_COSINE = 0.5
"""Below this median cosine with the pretrained matrices a model is a stranger."""
FAR, TIMES = 0.25, 10
"""So is one whose task vector is longer than this share of the pretrained weights, and so many
times the median of the other models'."""

Pairs = dict[str, dict[str, float]]
"""Model -> model -> number."""


@dataclass(frozen=True)
class Moved:
    """One model beside the pretrained one; matrices are the weights of two dimensions or more.

    Attributes:
        norm: Euclidean norm of the task vector.
        relative: that beside the norm of the pretrained weights; ``None`` where those are zero.
        changed: share of the weights' entries that differ, 0 to 1.
        equal: the tensors that are the pretrained model's, rounded to the narrower of the two
            types.
        cosine: of the model's matrices with the pretrained ones, the median; ``None`` without.
        rank: effective rank of the changed matrices' task vectors, the median; ``None`` without.
        ranks: by matrix; 0 for one that is not changed. Empty where they were not asked for.
        blocks: ``norm`` and ``relative`` of every block, which
            :func:`~sta_lightning.arithmetic.normalization.block_of` names.
    """

    norm: float
    relative: float | None
    changed: float
    equal: tuple[str, ...]
    cosine: float | None
    rank: float | None
    ranks: dict[str, float]
    blocks: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Comparison:
    """Several models beside the pretrained one.

    Attributes:
        tensors: how many take part.
        models: each by its name.
        cosine: of every two task vectors; 0 for one that is zero.
        conflict: see :func:`~sta_lightning.arithmetic.vectors.sign_conflict`.
    """

    tensors: int
    models: dict[str, Moved] = field(default_factory=dict)
    cosine: Pairs = field(default_factory=dict)
    conflict: Pairs = field(default_factory=dict)

    @property
    def strangers(self) -> dict[str, str]:
        """The models that were probably not fine-tuned from the pretrained one, and why.

        A fine-tuning goes a short way from where it began. Weights of another origin are about
        orthogonal to the pretrained ones, matrix by matrix: the median is taken because gains and
        embeddings resemble each other in all models. At an angle of more than 60 degrees a task
        vector is at least 0.87 times as long as the pretrained weights. Models of one training that
        went on resemble each other more; those stand out beside the others.
        """
        found = {}
        for name, model in self.models.items():
            others = [other.relative for key, other in self.models.items() if key != name and other.relative]
            usual = median(others) if len(others) > 1 else math.inf
            if model.cosine is not None and model.cosine < LEAST_COSINE:
                found[name] = (
                    f"the median cosine of its matrices with the base's is {round(model.cosine, 2) + 0.0:.2f}, "
                    f"below {LEAST_COSINE}"
                )
            elif model.relative is not None and model.relative > max(FAR, TIMES * usual):
                found[name] = (
                    f"its task vector has {model.relative:.0%} of the norm of the base's weights, "
                    f"{model.relative / usual:.0f} times the median of the others"
                )
        return found


@torch.no_grad()
def compare(problem: Problem, *, ranks: bool = True) -> Comparison:
    """Compare fine-tuned models with the pretrained one and with each other, piece by piece.

    The effective rank of a matrix's task vector with singular values s is the participation ratio
    of their squares, (sum of s^2)^2 / sum of s^4: k for k equal ones, and never more than the rank.
    It needs no decomposition, only the product of the matrix with itself.

    Args:
        problem: the models; one or more.
        ranks: whether effective ranks are computed, which takes most of the time.

    Raises:
        StaError: names or shapes differ, or an entry is NaN or infinite.
    """
    problem.check_names()
    tasks, names = problem.tasks, problem.names
    sums: dict[str, _Sums] = {}
    with Workers(usable_threads()) as workers:
        for name in names:
            sums[name] = _summed(problem.entries(name, workers))
    matrices = [name for name in names if len(problem.base[name].shape) > 1 and sums[name].entries]
    # One after another, each by all threads of PyTorch: a matrix may be large.
    found = {name: _ranks(problem.entries(name, Workers()), sums[name]) for name in matrices if ranks}
    total = reduce(add, sums.values(), _Sums.none(len(tasks)))
    lengths = total.gram.diagonal().sqrt()
    cosine = total.gram / (lengths[:, None] * lengths).where(total.gram != 0, 1.0)
    conflict = total.opposite / total.both.clamp(min=1)
    places = {task: tasks.index(task) for task in problem.finetuned}  # in the order given

    def pairs(table: Tensor) -> Pairs:
        return {one: {two: float(table[i, j]) for two, j in places.items()} for one, i in places.items()}

    models = {}
    for task, place in places.items():
        own = {name: by_model[place] for name, by_model in found.items()}
        models[task] = _moved(place, total, sums, matrices, own)
    return Comparison(len(names), models, pairs(cosine), pairs(conflict))


def _moved(
    place: int, total: _Sums, sums: dict[str, _Sums], matrices: list[str], ranks: dict[str, float]
) -> Moved:
    blocks: dict[str, list[_Sums]] = defaultdict(list)
    for name, found in sums.items():
        blocks[block_of(name)].append(found)
    cosines = [cosine for name in matrices if (cosine := sums[name].cosine(place)) is not None]
    return Moved(
        *total.length(place),
        changed=int(total.changed[place]) / max(1, total.entries),
        equal=tuple(name for name, found in sums.items() if not found.unequal[place]),
        cosine=median(cosines) if cosines else None,
        rank=median(filter(None, ranks.values())) if any(ranks.values()) else None,
        ranks=ranks,
        blocks={
            block: dict(zip(("norm", "relative"), reduce(add, parts).length(place), strict=True))
            for block, parts in blocks.items()
        },
    )


@dataclass(frozen=True)
class _Sums:
    """What is added up over entries, of N models in float64.

    Attributes:
        entries: how many there are.
        size: sum of the squares of the pretrained weights.
        gram: products of the task vectors ``[N, N]``.
        across: products of the task vectors with the pretrained weights ``[N]``.
        opposite: see :func:`~sta_lightning.arithmetic.vectors.sign_counts`.
        both: likewise.
        changed: how many entries differ ``[N]``.
        unequal: whether any does, as narrow as the narrower of two types ``[N]``.
    """

    entries: int
    size: float
    gram: Tensor
    across: Tensor
    opposite: Tensor
    both: Tensor
    changed: Tensor
    unequal: Tensor

    @classmethod
    def none(cls, models: int) -> _Sums:
        square, line = torch.zeros(models, models, dtype=torch.float64), torch.zeros(models)
        return cls(0, 0.0, square, line.double(), square, square, line.long(), line.bool())

    @classmethod
    def of(cls, block: Block, narrow: Iterable[torch.dtype]) -> _Sums:
        origin, deltas = block.origin.double(), torch.stack(list(double_deltas(block)))
        unequal = [
            not torch.equal(model.to(dtype), block.origin.to(dtype))
            for model, dtype in zip(block.finetuned, narrow, strict=True)
        ]
        return cls(
            origin.numel(),
            float(origin.square().sum()),
            deltas @ deltas.T,
            deltas @ origin,
            *sign_counts(deltas),
            (deltas != 0).sum(1),
            torch.tensor(unequal),
        )

    def __add__(self, other: _Sums) -> _Sums:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Sums(*(one + two for one, two in pairs))  # of truth values: whether one of them is true

    def length(self, place: int) -> tuple[float, float | None]:
        """Norm of a task vector, and that beside the pretrained weights'."""
        square = float(self.gram[place, place])
        return math.sqrt(square), math.sqrt(square / self.size) if self.size else None

    def cosine(self, place: int) -> float | None:
        """Of a model with the pretrained one; ``None`` where one of them is zero."""
        product = self.size + float(self.across[place])
        square = self.size + 2 * float(self.across[place]) + float(self.gram[place, place])
        return product / math.sqrt(self.size * square) if self.size > 0 and square > 0 else None


def _summed(entries: Entries) -> _Sums:
    """The sums of a tensor, the threads sharing its pieces."""
    none, threads, pieces = _Sums.none(len(entries.finetuned)), entries.workers.threads, entries.pieces()
    narrow = [min(entries.base.dtype, s.dtype, key=lambda dtype: dtype.itemsize) for s in entries.finetuned]

    # Added up at once: what stays of every piece would keep the memory of large ones from its use.
    def share(own: list[slice]) -> _Sums:
        parts = (part for piece in own for part in entries.block(piece).parts())
        return reduce(add, (_Sums.of(part, narrow) for part in parts), none)

    shares = [pieces[at::threads] for at in range(threads)]
    return reduce(add, entries.workers.map(share, shares, apart=True), none)


def _ranks(entries: Entries, found: _Sums) -> list[float]:
    """Effective rank of every model's task vector of a matrix."""
    return [_rank(entries, place, norm) for place, norm in enumerate(found.gram.diagonal().sqrt().tolist())]


def _rank(entries: Entries, place: int, norm: float) -> float:
    """Effective rank of a matrix's task vector of that norm, some rows at a time."""
    if not norm:
        return 0.0
    rows, columns = entries.shape[0], entries.shape[1:].numel()
    step = max(1, piece_size(entries.device) // columns)
    # The smaller of the two products; of the other side the rows need not be there together.
    whole = torch.empty(rows, columns, dtype=entries.work) if rows < columns else None
    product = torch.zeros(0 if whole is not None else columns, columns, dtype=entries.work)
    for at in range(0, rows, step):
        piece = slice(at * columns, min(at + step, rows) * columns)
        models = (source.read(piece, entries.work) for source in (entries.finetuned[place], entries.origin))
        some = ((next(models) - next(models)) / norm).view(-1, columns)
        if whole is None:
            product.addmm_(some.T, some)
        else:
            whole[at : at + step] = some
    products = [product] if whole is None else (whole @ some.T for some in torch.split(whole, step))
    # The squared singular values add up to one.
    return 1 / sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in products)
