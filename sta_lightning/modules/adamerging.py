from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.baselines.adamerging import entropy
from sta_lightning.arithmetic.states import weight_names
from sta_lightning.engine import TaskSource
from sta_lightning.errors import StaError
from sta_lightning.modules.frozen import Frozen, read_frozen
from sta_lightning.modules.learned import LearnedMerging

Granularity = Literal["task", "tensor"]


class AdaMerging(LearnedMerging):
    """Learn a merge's coefficients by making its predictions certain (Yang et al. 2024).

    What is merged is theta_0 + sum of lambda_i * delta_i, and the lambda_i are learned, limited to
    0..1 wherever they are used. The sum over the tasks of the mean entropy of the predictions is
    made smaller. No label is read, but the images are by default those of the test sets: the method
    is transductive.

    Logs ``train/entropy`` (the mean over the tasks, in nats), ``train/<task>/entropy`` and
    ``coefficient/<task>`` (the mean over the tensors, 0 to 1).

    The defaults are the authors': Adam, learning rate 1e-3, coefficients from 0.3 on. Their 500
    steps are the trainer's ``max_steps``, their batches of 16 the datamodule's ``batch_size``.

    Args:
        tasks: By task name (or the path of a task's YAML file): its fine-tuned encoder, and its
            head if it is not to be made; or the names alone, see ``files``.
        granularity: A coefficient for every ``task``, or for every task and ``tensor`` (the
            authors' layer-wise).
        trim: Share of the largest entries that each task vector keeps (0.2 in AdaMerging++), less
            those that disagree with the sign that TIES elects; ``None`` to take the task vectors as
            they are.
        init: Where the coefficients start, between 0 and 1.
        learning_rate: Of Adam.
        shared: See :class:`~sta_lightning.modules.learned.LearnedMerging`, for the datamodule too.

    Raises:
        StaError: An argument is unknown or out of range; in a fit, a source is missing or does not
            fit.
    """

    from_checkpoint: ClassVar = (
        *("encoder", "pretrained", "image_size"),
        *("granularity", "trim", "init", "learning_rate"),
    )
    method, goal = "adamerging", "entropy"

    def __init__(
        self,
        tasks: dict[str, TaskSource] | list[str],
        granularity: Granularity = "tensor",
        trim: float | None = None,
        init: float = 0.3,
        learning_rate: float = 1e-3,
        **shared: Any,
    ) -> None:
        super().__init__(tasks, learning_rate, **shared)
        _check_settings(granularity, trim, init)
        self._granularity, self._trim, self.init = granularity, trim, init

    @override
    def read(self, sources: Mapping[str, tuple[str, TaskSource]]) -> Frozen:
        return read_frozen(sources, self._encoder_name, self._pretrained, self._image_size, self._trim)

    @override
    def start(self, frozen: Frozen) -> Tensor:
        tasks, tensors = len(frozen.vectors), len(weight_names(frozen.encoder.state_dict()))
        shape = (tasks,) if self._granularity == "task" else (tasks, tensors)
        return torch.full(shape, float(self.init))

    @override
    def limited(self) -> Tensor:
        """Return the coefficients, limited to 0..1: ``[N]``, or ``[N, T]`` for T tensors."""
        return self.coefficients.clamp(0.0, 1.0)

    @override
    def loss(self, task: str, images: Tensor, logits: Tensor) -> Tensor:
        return entropy(logits)

    @override
    def identity(self) -> dict[str, Any]:
        return {"granularity": self._granularity, "trim": self._trim}


def _check_settings(granularity: str, trim: float | None, init: float) -> None:
    if granularity not in get_args(Granularity):
        known = ", ".join(get_args(Granularity))
        raise StaError(f"granularity={granularity!r} was asked for; choose from {known}.")
    if trim is not None and not 0 < trim <= 1:
        raise StaError(
            f"trim={trim} was asked for: give the share of entries to keep, above 0 and up to 1 (0.2 in AdaMerging++), or null."
        )
    # At the bounds clamp() passes no gradient: what starts there stays there.
    if not 0 < init < 1:
        raise StaError(f"init={init} must lie between 0 and 1, within the coefficients' bounds.")
