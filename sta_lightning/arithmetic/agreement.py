"""How far two importances of a model agree: in the order of the entries, in what a mask keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from sta_lightning.arithmetic.checks import check_importance
from sta_lightning.arithmetic.masks import forget_mask, tensor_generator
from sta_lightning.arithmetic.states import StateDict, floating_names
from sta_lightning.errors import StaError
from sta_lightning.ranges import SHARE


@dataclass(frozen=True)
class Agreement:
    """Agreement of two importances, of one tensor or, as a mean weighted by ``size``, of several.

    Attributes:
        spearman: Spearman's rank correlation of the sampled entries, -1 to 1, ties at their mean
            rank. Where all entries of one of the two are equal there is no order: 1 if they are in
            both, else 0.
        kept: Share, 0 to 1, of the sampled entries that both or neither have above the p-quantile
            of the sample.
        size: Entries of the tensor or tensors, sampled or not.
    """

    spearman: float
    kept: float
    size: int


@torch.no_grad()
def importance_agreement(
    reference: StateDict, other: StateDict, *, p: float = 0.7, entries: int = 10_000, seed: int = 0
) -> dict[str, Agreement]:
    """Compare two importances of the same model, tensor by tensor.

    A mask depends on the order of the entries alone, so that is what is compared: the importances
    of a model in bfloat16 may all be a percent off and give the same mask.

    Args:
        reference: tensor name -> importance of any shape, no NaN.
        other: the same names and shapes.
        p: quantile of the mask, in [0, 1]; 0.7 keeps the top 30%.
        entries: how many entries of a tensor are compared at most. A larger tensor is sampled, at
            positions that depend on the seed and the tensor's name alone.
        seed: which positions.

    Returns:
        tensor name -> agreement, without empty tensors.

    Raises:
        StaError: if names or shapes differ, an entry is not finite, ``p`` is outside [0, 1] or
            ``entries`` is below 2.
    """
    SHARE.check(p)
    if entries < 2:
        raise StaError(f"entries must be at least 2, not {entries}: fewer have no order.")
    check_importance(reference, other, name="the other importance")
    found = {}
    for name in floating_names(reference):
        if reference[name].numel():
            size = reference[name].numel()
            where = torch.arange(min(size, entries))
            if size > entries:
                drawn = torch.randint(size, (entries,), generator=tensor_generator(seed, name))
                where = cast(Tensor, torch.unique(drawn))
            pair = [state[name].detach().flatten().cpu()[where] for state in (reference, other)]
            same = forget_mask(pair[0], p) == forget_mask(pair[1], p)
            found[name] = Agreement(_spearman(*pair), float(same.double().mean()), size)
    return found


def mean_agreement(agreements: Mapping[str, Agreement]) -> Agreement:
    """The mean over tensors, each counted by its size.

    Raises:
        StaError: if there is none.
    """
    if not agreements:
        raise StaError("there is no tensor to take the mean agreement of.")
    found = agreements.values()
    size = sum(one.size for one in found)
    spearman, kept = sum(one.spearman * one.size for one in found), sum(one.kept * one.size for one in found)
    return Agreement(spearman / size, kept / size, size)


def _spearman(first: Tensor, second: Tensor) -> float:
    a, b = (_centred_ranks(values) for values in (first, second))
    scale = float(a.norm() * b.norm())
    if scale == 0:
        return float(not a.any() and not b.any())
    return float(a @ b) / scale


def _centred_ranks(values: Tensor) -> Tensor:
    """Ranks in float64, ties at their mean rank, less the mean of all ranks."""
    found = torch.unique(values, return_inverse=True, return_counts=True)
    _, inverse, counts = cast(tuple[Tensor, Tensor, Tensor], found)
    # The last rank of a value less half of how many more there are of it.
    ranks = counts.cumsum(0).double() - (counts - 1) / 2
    return ranks[inverse] - (len(values) + 1) / 2
