from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override


class Accuracy(Metric):
    """The share of samples whose largest logit is the label's.

    Counts are whole numbers and an update may be empty: the last batch of a process may hold
    nothing but repetitions, which the multiclass accuracy of torchmetrics refuses.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    correct: Tensor
    total: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits ``[B, C]``, labels ``[B]``; B may be 0."""
        self.correct += (logits.argmax(dim=-1) == labels).sum()
        self.total += labels.numel()

    @override
    def compute(self) -> Tensor:
        """Return the share, 0 to 1; NaN if nothing has been counted."""
        return self.correct / self.total
