"""How often task vectors pull in opposite directions."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sta_lightning.arithmetic.memory import check_models
from sta_lightning.arithmetic.states import StateDict, floating_names
from sta_lightning.arithmetic.vectors import difference


@torch.no_grad()
def sign_conflict(pretrained: StateDict, finetuned: Mapping[str, StateDict]) -> dict[str, dict[str, float]]:
    """Share of the entries at which two task vectors have opposite signs, for every pair of tasks.

    Args:
        pretrained: tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes.

    Returns:
        Task -> task -> share in [0, 1] of the entries that are not zero in both; 0 where there is
        no such entry. 0.5 is what two unrelated vectors have.

    Raises:
        StaError: if models do not match or an entry is not finite.
    """
    check_models(pretrained, finetuned)
    tasks = list(finetuned)
    opposite = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    both = torch.zeros_like(opposite)
    for name in floating_names(pretrained):
        signs = torch.stack(
            [difference(pretrained[name], finetuned[task][name]).reshape(-1).sign() for task in tasks]
        ).cpu()
        # Counts below 2^24 are exact in float32, in which the products are quick.
        for piece in torch.split(signs.float(), 1 << 22, dim=1):
            agreement = (piece @ piece.T).double()
            present = piece.abs()
            shared = (present @ present.T).double()
            both += shared
            opposite += (shared - agreement) / 2
    share = torch.where(both > 0, opposite / both.clamp(min=1), 0.0)
    return {
        first: {second: float(share[row, column]) for column, second in enumerate(tasks)}
        for row, first in enumerate(tasks)
    }
