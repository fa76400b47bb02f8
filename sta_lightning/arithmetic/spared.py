"""Forgetting that spares a control: what the control's inputs see of the task vector is left in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.linear_layers import unit_gram, wide_grams
from sta_lightning.arithmetic.method import Combined, MergeMethod
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.quadratic import times_inverse
from sta_lightning.arithmetic.spectral import double_deltas
from sta_lightning.ranges import finite, number


@dataclass(frozen=True)
class Spared(MergeMethod):
    """Forgetting that spares a control: theta_k - scale * delta G_t (G_t + mu G_c)^-1 of a layer.

    G_t and G_c are the Gram matrices X^T X of the inputs X ``[rows, in]`` that the layer meets on
    images of the target and of the control, each divided by its mean eigenvalue. Of all changes
    tau ``[out, in]`` of a linear layer it is the one with the least

        tr((tau - delta) G_t (tau - delta)^T) + mu tr(tau G_c tau^T):

    like the task vector on what the target sends through the layer, and nothing on what the
    control sends through it. Inputs that neither reaches keep the task vector. Tensors that are no
    linear layer's weight stay as they are: no Gram matrix tells what the control uses of them.

    Args:
        mu: how much the control counts beside the target, 0 or more; 0 is task arithmetic in the
            linear layers.
        scale: the coefficient gamma.
    """

    mu: float = number(1.0, "[0, inf)", hint="0 spares nothing, 1 counts the control like the target.")
    scale: float = finite(1.0)

    title = "Spared control"
    summary = "the part of the task vector that the target's inputs see and a control's do not is taken out"
    data = "unlabelled samples"
    coefficient = "scale"
    source = "this project"
    scope = "tensor"
    side_by_side = True
    needs_grams = True
    spares = True

    @override
    def check(self, problem: Problem) -> None:
        problem.check_grams(self.title)

    @override
    def combine(self, block: Block, state: Any) -> Combined:
        if not block.grams:
            return Combined(block.base)
        return Combined(block.base - self.scale * self._spared(block).to(block.base))

    def _spared(self, block: Block) -> Tensor:
        """The task vector of a layer less what the control sees of it, float64 ``[out, in]``.

        delta G_t (G_t + mu G_c)^-1 = delta - mu delta G_c (G_t + mu G_c)^-1, of which the second is
        defined where the sum has no inverse, too.
        """
        (delta,) = double_deltas(block)
        target, control = map(unit_gram, wide_grams(block))
        precision = max(torch.finfo(gram.dtype).eps for gram in block.grams)
        return delta - times_inverse(self.mu * delta @ control, target + self.mu * control, precision)
