"""A method of the package as a function of the models and its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sta_lightning.arithmetic import merge

State = dict[str, Tensor]


def by_name(method: str, reads: str = "importance") -> Callable[..., State]:
    """``merge(method, ...)`` with its settings as keywords.

    Args:
        method: its name.
        reads: what a third argument is: ``"importance"`` or ``"grams"``.
    """

    def call(
        base: State,
        finetuned: Mapping[str, State],
        more: Mapping[str, State] | None = None,
        *,
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> State:
        return merge(method, base, finetuned, settings=settings, dtype=dtype, **{reads: more}).weights  # type: ignore[arg-type]

    return call
