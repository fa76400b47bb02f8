"""Masks: which entries of a task vector are kept (Eq. 14-17), and random ones as dense."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sta_lightning.arithmetic.selection import kth_smallest, kth_smallest_entry, rank
from sta_lightning.arithmetic.states import is_finite, pieces
from sta_lightning.errors import StaError


@torch.no_grad()
def fusion_mask(scores: Tensor, p: float) -> Tensor:
    """At every position keep the tasks whose score exceeds the p-quantile of the N (Eq. 14-17).

    The interpolated threshold T of Eq. 16 lies in [s_k, s_{k+1}), so the mask [I > T] is [I > s_k]:
    one order statistic and one comparison, with no rounding that could move T onto s_{k+1}.

    Args:
        scores: shape ``[N, ...]``, the N tasks' normalised importances of one tensor; no NaN.
        p: quantile in [0, 1]. Without ties exactly N - :func:`rank` (N, p) tasks are kept at every
            position.

    Returns:
        Boolean, shape ``[N, ...]``. Ties at the threshold are dropped: where all N scores are
        equal, nothing is kept.

    Raises:
        StaError: if ``p`` is outside [0, 1], there is no task, or a score is not finite.

    Example:
        >>> fusion_mask(torch.tensor([[0.1, 0.5], [0.2, 0.5], [0.9, 0.1]]), p=0.7)
        tensor([[False, False],
                [False, False],
                [ True, False]])
    """
    if scores.dim() == 0 or scores.shape[0] == 0:
        raise StaError(
            f"scores must have shape [N, ...] with N >= 1 tasks, and have shape {list(scores.shape)}."
        )
    k = rank(scores.shape[0], p)
    _check_scores(scores)
    rows = scores.detach().reshape(scores.shape[0], -1)
    mask = torch.empty(rows.shape, dtype=torch.bool, device=rows.device)
    for piece in pieces(rows[0]):
        for task, kept in enumerate(above_kth([row[piece] for row in rows], k)):
            mask[task, piece] = kept
    return mask.reshape(scores.shape)


def above_kth(rows: Sequence[Tensor], k: int) -> Iterator[Tensor]:
    """For each of N rows, where it is strictly greater than the k-th smallest of all (Eq. 17)."""
    threshold = kth_smallest(rows, k)
    for row in rows:
        yield row > threshold


@torch.no_grad()
def forget_mask(importance: Tensor, p: float) -> Tensor:
    """Keep the entries of one tensor above the p-quantile of its own importances (section 3.4).

    Args:
        importance: any shape and size, no NaN; normalised or not, which makes no difference.
        p: quantile in [0, 1]; 0.7 keeps the top 30%.

    Returns:
        Boolean, the same shape. Without ties numel - :func:`rank` (numel, p) entries are kept; ties
        at the threshold are dropped, so of a constant tensor or a scalar nothing is kept.

    Raises:
        StaError: if ``p`` is outside [0, 1] or an entry is not finite.
    """
    if importance.numel() == 0:
        rank(1, p)
        return torch.zeros(importance.shape, dtype=torch.bool, device=importance.device)
    k = rank(importance.numel(), p)
    _check_scores(importance)
    return importance.detach() > kth_smallest_entry(importance, k)


def tensor_generator(seed: int, name: str) -> torch.Generator:
    """A source of random numbers for one tensor, by seed and name alone.

    The same tensor gets the same mask on every machine, in whatever order the tensors come and
    whichever others there are.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def random_fusion_mask(n: int, shape: Sequence[int], p: float, generator: torch.Generator) -> Tensor:
    """A random mask of the density of :func:`fusion_mask`: the control of importance.

    Args:
        n: number of tasks, at least 1.
        shape: shape of the tensor.
        p: quantile in [0, 1].
        generator: its device makes the mask; :func:`tensor_generator` gives one on the CPU.

    Returns:
        Boolean, shape ``[n, *shape]``: at every position exactly n - :func:`rank` (n, p) tasks,
        every such choice equally likely and independent of the other positions.

    Raises:
        StaError: if ``p`` is outside [0, 1] or ``n`` is no positive integer.
    """
    wanted = n - rank(n, p)
    left = torch.full(tuple(shape), wanted, dtype=torch.int64, device=generator.device)
    mask = torch.empty((n, *shape), dtype=torch.bool, device=generator.device)
    for task in range(n):
        # Selection sampling (Knuth, 3.4.2, algorithm S): task i is kept with probability (still
        # wanted) / (still to come).
        drawn = torch.rand(tuple(shape), dtype=torch.float64, generator=generator, device=generator.device)
        chosen = drawn * (n - task) < left
        mask[task] = chosen
        left -= chosen.to(torch.int64)
    return mask


def random_forget_mask(shape: Sequence[int], p: float, generator: torch.Generator) -> Tensor:
    """A random mask of the density of :func:`forget_mask`; see :func:`random_fusion_mask`.

    Returns:
        Boolean, shape ``shape``: exactly numel - :func:`rank` (numel, p) entries, every such choice
        equally likely.
    """
    size = math.prod(shape)
    kept = size - rank(size, p) if size else rank(1, p) - 1
    mask = torch.zeros(size, dtype=torch.bool, device=generator.device)
    mask[torch.randperm(size, generator=generator, device=generator.device)[:kept]] = True
    return mask.reshape(tuple(shape))


def _check_scores(scores: Tensor) -> None:
    if not is_finite(scores):
        raise StaError("the importance holds NaN or Inf, which have no rank. Score the model again.")
