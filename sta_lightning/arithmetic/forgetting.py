"""Forgetting a task through a mask (Eq. 20)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sta_lightning.arithmetic.checks import check_dtype, check_importance, check_result, check_share
from sta_lightning.arithmetic.masks import forget_mask, random_forget_mask, tensor_generator
from sta_lightning.arithmetic.states import Merged, StateDict, working_dtype
from sta_lightning.arithmetic.vectors import check_triple, difference


def forget(
    model: StateDict,
    pretrained: StateDict,
    finetuned: StateDict,
    importance: StateDict,
    *,
    p: float = 0.7,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Make a model forget a task: theta_k - M * delta, with no coefficient (Eq. 20).

    The mask keeps, in each tensor, the entries whose importance exceeds the p-quantile of that tensor's
    importances. Normalisation (Eq. 13) is monotone and changes nothing here.

    Args:
        model: the model that shall forget, theta_k: the pretrained model (as in the paper's Table 3), a fused
            one or a fine-tuned one; tensor name -> tensor of any shape.
        pretrained: the model that ``finetuned`` started from; the same names and shapes.
        finetuned: the model fine-tuned on the task to forget.
        importance: importance of every floating-point tensor of ``finetuned``.
        p: quantile in [0, 1]; 0.7 subtracts the top 30% of the entries, 1 nothing.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``model``. Sums are
            made in float32 whatever the types (float64 if a source is float64).

    Returns:
        A new model, names in the order of ``model``; integer buffers are copied from ``model``.

    Raises:
        StaError: if ``p`` is invalid, the sources differ in names or shapes, or an entry is NaN or Inf. The
            message names the tensors.

    Example:
        >>> base, tuned = {"w": torch.zeros(4)}, {"w": torch.ones(4)}
        >>> forget(base, base, tuned, {"w": torch.tensor([1.0, 4.0, 3.0, 2.0])}, p=0.5)
        {'w': tensor([ 0., -1., -1.,  0.])}
    """
    return forget_masked(model, pretrained, finetuned, importance, p=p, dtype=dtype).weights


def forget_masked(
    model: StateDict,
    pretrained: StateDict,
    finetuned: StateDict,
    importance: StateDict,
    *,
    p: float = 0.7,
    task: str = "target",
    dtype: torch.dtype | None = None,
) -> Merged:
    """:func:`forget`, together with the share of entries that the mask keeps, under the name ``task``.

    Takes and raises what :func:`forget` does.
    """
    check_share(p)
    check_triple(model, pretrained, finetuned)
    check_importance(finetuned, importance, name=f"the importance of task '{task}'")
    return _subtract(
        model, pretrained, finetuned, lambda name, _: forget_mask(importance[name], p), task, dtype
    )


def forget_random(
    model: StateDict,
    pretrained: StateDict,
    finetuned: StateDict,
    *,
    p: float = 0.7,
    seed: int = 0,
    task: str = "target",
    dtype: torch.dtype | None = None,
) -> Merged:
    """The control of :func:`forget`: a random mask of the same density.

    It keeps numel - rank(numel, p) entries of each tensor.

    Args:
        model: the model that shall forget.
        pretrained: the model that ``finetuned`` started from.
        finetuned: the model fine-tuned on the task to forget.
        p: quantile in [0, 1].
        seed: the mask of a tensor is a function of this number and the tensor's name.
        task: name of the task in the share kept.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``model``.

    Returns:
        The model and the share kept.

    Raises:
        StaError: as :func:`forget`.
    """
    check_share(p)
    check_triple(model, pretrained, finetuned)
    return _subtract(
        model,
        pretrained,
        finetuned,
        lambda name, base: random_forget_mask(base.shape, p, tensor_generator(seed, name)),
        task,
        dtype,
    )


@torch.no_grad()
def _subtract(
    model: StateDict,
    pretrained: StateDict,
    finetuned: StateDict,
    mask_of: Callable[[str, Tensor], Tensor],
    task: str,
    dtype: torch.dtype | None,
) -> Merged:
    """theta_k - M * delta, tensor by tensor (Eq. 20)."""
    check_dtype(dtype)
    weights: dict[str, Tensor] = {}
    kept: dict[str, dict[str, float]] = {}
    for name, base in model.items():
        if not base.is_floating_point():
            weights[name] = base.detach().clone()
            continue
        mask = mask_of(name, base).to(base.device)
        delta = difference(pretrained[name], finetuned[name]).to(base.device)
        total = base.detach().to(working_dtype(base, delta)) - torch.where(mask, delta, 0.0)
        weights[name] = check_result(total.to(dtype or base.dtype), name)
        kept[name] = {task: int(mask.sum()) / max(1, base.numel())}
    return Merged(weights, kept)
