"""Forgetting a task through a mask (Eq. 20)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Addresses, Block, Entries
from sta_lightning.arithmetic.linear import FORGETS
from sta_lightning.arithmetic.masks import random_forget_mask, tensor_generator
from sta_lightning.arithmetic.memory import run_in_memory
from sta_lightning.arithmetic.method import Answer, Combined, MergeMethod, Native
from sta_lightning.arithmetic.order import kth_entry
from sta_lightning.arithmetic.selection import rank
from sta_lightning.arithmetic.states import StateDict
from sta_lightning.kernels import Loops, loops
from sta_lightning.ranges import share


def masked_difference(block: Block, mask: Tensor) -> Combined:
    """Base - mask * delta (Eq. 20)."""
    (delta,) = block.deltas()
    return Combined(block.base - torch.where(mask, delta, 0.0), mask.sum().reshape(1))


@dataclass(frozen=True)
class StaForgetting(MergeMethod):
    """Subtract the important part of a task vector: theta_k - M * delta (Eq. 20).

    Args:
        p: quantile in [0, 1], see :func:`forget`.
    """

    p: float = share(0.7)

    title = "STA"
    summary = "the entries of the task vector whose importance is largest in their tensor are taken out"
    data = "labelled samples"
    source = "Tian et al. 2024"
    needs_importance = True
    rereads_scores = True

    @override
    def prepare_tensor(self, entries: Entries, prepared: Any) -> float:
        """The p-quantile of the tensor's importances: one of them, exactly."""
        return float(kth_entry(entries, rank(entries.numel, self.p))) if entries.numel else 0.0

    @override
    def combine(self, block: Block, state: float) -> Combined:
        (scores,) = block.scores
        return masked_difference(block, scores > state)

    @override
    def native(self, tasks: int) -> Native | None:
        def call(kernel: Loops, addresses: Addresses, state: float, out: int, size: int) -> Answer:
            base, origin, (finetuned,), (score,) = addresses
            finite, kept = kernel.subtract(base, origin, finetuned, score, state, out, size)
            return Answer(finite, [kept])

        return Native(loops, call, reads_origin=True)


@dataclass(frozen=True)
class RandomForgetting(MergeMethod):
    """The control of :class:`StaForgetting`: numel - rank(numel, p) random entries of each tensor.

    Args:
        p: quantile in [0, 1].
        seed: the mask of a tensor is a function of this number and the tensor's name.
    """

    p: float = share(0.7)
    seed: int = 0

    title = "Random mask"
    summary = "as many entries of every tensor as STA takes out, drawn at random: the control"
    source = "this project"

    @override
    def prepare_tensor(self, entries: Entries, prepared: Any) -> Tensor:
        """The mask, bool ``[numel]``."""
        return random_forget_mask([entries.numel], self.p, tensor_generator(self.seed, entries.name))

    @override
    def combine(self, block: Block, state: Tensor) -> Combined:
        return masked_difference(block, state[block.piece].to(block.base.device))


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

    The mask keeps, in each tensor, the entries whose importance exceeds the p-quantile of that
    tensor's importances. Normalisation (Eq. 13) is monotone and changes nothing here.

    Args:
        model: the model that shall forget, theta_k: the pretrained model (as in the paper's Table
            3), a fused one or a fine-tuned one; tensor name -> tensor of any shape.
        pretrained: the model that ``finetuned`` started from; the same names and shapes.
        finetuned: the model fine-tuned on the task to forget.
        importance: importance of every floating-point tensor of ``finetuned``.
        p: quantile in [0, 1]; 0.7 subtracts the top 30% of the entries, 1 nothing.
        dtype: type of the result, see :func:`~sta_lightning.arithmetic.fuse`.

    Returns:
        A new model, names in the order of ``model``; integer buffers are copied from ``model``.

    Raises:
        StaError: if ``p`` is invalid, the sources differ in names or shapes, or an entry is NaN or
            Inf. The message names the tensors.

    Example:
        >>> base, finetuned = {"w": torch.zeros(4)}, {"w": torch.ones(4)}
        >>> forget(base, base, finetuned, {"w": torch.tensor([1.0, 4.0, 3.0, 2.0])}, p=0.5)
        {'w': tensor([ 0., -1., -1.,  0.])}
    """
    return run_in_memory(
        StaForgetting(p),
        model,
        {"target": finetuned},
        {"target": importance},
        origin=pretrained,
        base_title=FORGETS,
        dtype=dtype,
    ).weights
