"""Fusion of fine-tuned models through masks (Eq. 13-19)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sta_lightning.arithmetic.checks import check_dtype, check_importance, check_result
from sta_lightning.arithmetic.masks import above_kth, random_fusion_mask, tensor_generator
from sta_lightning.arithmetic.normalization import bounds
from sta_lightning.arithmetic.selection import rank
from sta_lightning.arithmetic.states import Merged, StateDict, floating_names, pieces, working_dtype
from sta_lightning.arithmetic.vectors import check_models
from sta_lightning.errors import StaError, listed

PieceMasks = Callable[[slice], Iterable[Tensor]]
"""A slice of the flattened tensor -> one boolean mask a task, in the order of the tasks."""


def fuse(
    pretrained: StateDict,
    finetuned: Mapping[str, StateDict],
    importance: Mapping[str, StateDict],
    *,
    p: float = 0.7,
    normalize: str = "tensor",
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Selective task arithmetic: theta_0 + sum of M_i * delta_i, with no coefficient (Eq. 13-19).

    At every position the tasks whose normalised importance exceeds the p-quantile of the N importances there
    contribute their task vector; the others contribute nothing.

    Args:
        pretrained: the model before fine-tuning; tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes, two or more.
        importance: task name -> importance (tensor name -> tensor) of every floating-point tensor, the same
            tasks.
        p: quantile in [0, 1]. Without ties N - :func:`~sta_lightning.arithmetic.rank` (N, p) tasks are kept
            at every position, at the default 1, 1, 2, 3 of 2, 3, 6, 8 tasks. 0 keeps all but the smallest,
            1 keeps nothing.
        normalize: over what Eq. 13 takes minimum and maximum: ``"tensor"`` (the paper's), ``"block"``,
            ``"model"`` or ``"none"``.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``pretrained``. Sums
            are made in float32 whatever the types (float64 if a source is float64).

    Returns:
        A new model, names in the order of ``pretrained``; integer buffers are copied from ``pretrained``. It
        depends on the order of the tasks in no digit.

    Raises:
        StaError: if there are fewer than two tasks, ``p`` or ``normalize`` is invalid, the sources differ in
            tasks, names or shapes, or an entry is NaN or Inf. The message names the task and the tensors.

    Example:
        >>> base = {"w": torch.zeros(3)}
        >>> tuned = {"a": {"w": torch.ones(3)}, "b": {"w": torch.full((3,), 2.0)}}
        >>> scores = {"a": {"w": torch.tensor([0.0, 5.0, 9.0])}, "b": {"w": torch.tensor([3.0, 0.0, 3.0])}}
        >>> fuse(base, tuned, scores)
        {'w': tensor([2., 1., 0.])}
    """
    return fuse_masked(pretrained, finetuned, importance, p=p, normalize=normalize, dtype=dtype).weights


def fuse_masked(
    pretrained: StateDict,
    finetuned: Mapping[str, StateDict],
    importance: Mapping[str, StateDict],
    *,
    p: float = 0.7,
    normalize: str = "tensor",
    dtype: torch.dtype | None = None,
) -> Merged:
    """:func:`fuse`, together with the share of entries that each mask keeps (the paper's Fig. 4).

    Takes and raises what :func:`fuse` does.
    """
    k = _check_fusion(pretrained, finetuned, p)
    _check_importances(pretrained, finetuned, importance)
    tasks = sorted(finetuned)
    names = floating_names(pretrained)
    limits = {task: bounds(importance[task], normalize, names) for task in tasks}

    def masks_of(name: str, base: Tensor) -> PieceMasks:
        flat = [importance[task][name].detach().reshape(-1) for task in tasks]

        def masks(piece: slice) -> Iterable[Tensor]:
            rows = [
                limits[task][name].apply(scores[piece].to(base.device))
                for task, scores in zip(tasks, flat, strict=True)
            ]
            return above_kth(rows, k)

        return masks

    return _fuse(pretrained, finetuned, tasks, masks_of, dtype)


def fuse_random(
    pretrained: StateDict,
    finetuned: Mapping[str, StateDict],
    *,
    p: float = 0.7,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Merged:
    """The control of :func:`fuse`: a random mask of the same density, N - rank(N, p) tasks at every position.

    Args:
        pretrained: tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes, two or more.
        p: quantile in [0, 1].
        seed: the masks are a function of this number, the tensor's name and the sorted task names.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``pretrained``.

    Returns:
        The merged model and the share kept.

    Raises:
        StaError: as :func:`fuse`.
    """
    _check_fusion(pretrained, finetuned, p)
    tasks = sorted(finetuned)

    def masks_of(name: str, base: Tensor) -> PieceMasks:
        mask = random_fusion_mask(len(tasks), base.shape, p, tensor_generator(seed, name))
        flat = mask.reshape(len(tasks), -1)
        return lambda piece: flat[:, piece]

    return _fuse(pretrained, finetuned, tasks, masks_of, dtype)


@torch.no_grad()
def _fuse(
    pretrained: StateDict,
    finetuned: Mapping[str, StateDict],
    tasks: Sequence[str],
    masks_of: Callable[[str, Tensor], PieceMasks],
    dtype: torch.dtype | None,
) -> Merged:
    """Eq. 18 and 19, tensor by tensor."""
    check_dtype(dtype)
    weights: dict[str, Tensor] = {}
    kept: dict[str, dict[str, float]] = {}
    for name, base in pretrained.items():
        if not base.is_floating_point():
            weights[name] = base.detach().clone()
            continue
        tuned = [finetuned[task][name] for task in tasks]
        result, counts = masked_sum(base, tuned, masks_of(name, base), dtype or base.dtype)
        weights[name] = check_result(result, name)
        size = max(1, base.numel())
        kept[name] = {task: count / size for task, count in zip(tasks, counts, strict=True)}
    return Merged(weights, kept)


def masked_sum(
    base: Tensor, tuned: Sequence[Tensor], masks: PieceMasks, dtype: torch.dtype
) -> tuple[Tensor, list[int]]:
    """One fused tensor, base + sum of mask_i * (tuned_i - base) (Eq. 18 and 19), a piece at a time.

    Args:
        base: the pretrained tensor, any shape.
        tuned: the N fine-tuned tensors, the same shape.
        masks: gives the N masks of a piece.
        dtype: type of the result.

    Returns:
        A new tensor on the device of ``base``, and for each task the number of entries kept.
    """
    work = working_dtype(base, *tuned)
    flat = base.detach().reshape(-1)
    flat_tuned = [tensor.detach().reshape(-1) for tensor in tuned]
    result = torch.empty(flat.shape, dtype=dtype, device=flat.device)
    counts = torch.zeros(len(tuned), dtype=torch.int64, device=flat.device)
    for piece in pieces(flat):
        start = flat[piece].to(work)
        total = torch.zeros_like(start)
        for task, (tensor, mask) in enumerate(zip(flat_tuned, masks(piece), strict=True)):
            delta = tensor[piece].to(start.device, work) - start
            kept = mask.to(start.device)
            total += torch.where(kept, delta, 0.0)
            counts[task] += kept.sum()
        result[piece] = start + total
    return result.reshape(base.shape), [int(count) for count in counts.tolist()]


def _check_fusion(pretrained: StateDict, finetuned: Mapping[str, StateDict], p: float) -> int:
    check_models(pretrained, finetuned)
    k = rank(len(finetuned), p)
    if len(finetuned) < 2:
        raise StaError(
            f"fusing needs at least two tasks, and there is one: {listed(finetuned)}. The quantile over a "
            "single task keeps nothing (Eq. 15-17), so the result would be the pretrained model. Use the "
            "fine-tuned model itself."
        )
    return k


def _check_importances(
    pretrained: StateDict, finetuned: Mapping[str, StateDict], importance: Mapping[str, StateDict]
) -> None:
    if not isinstance(importance, Mapping):
        raise StaError(
            f"importance must map task names to importances, and is a {type(importance).__name__}. Compute "
            "them with importance_for."
        )
    missing, unknown = sorted(set(finetuned) - set(importance)), sorted(set(importance) - set(finetuned))
    if missing or unknown:
        raise StaError(
            f"every task needs its importance: missing for {listed(missing)}, left over for "
            f"{listed(unknown)}. Give fine-tuned models and importances under the same task names."
        )
    for task in finetuned:
        check_importance(pretrained, importance[task], name=f"the importance of task '{task}'")
