from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import override

from sta_lightning.arithmetic import FORGET_METHODS, MergeMethod
from sta_lightning.arithmetic.coefficients import Coefficients
from sta_lightning.arithmetic.methods import refuse_several
from sta_lightning.engine.defaults import DATA_FREE_FORGETTING
from sta_lightning.engine.job import Job
from sta_lightning.engine.part import Part
from sta_lightning.engine.sources import TaskSource


class ForgettingJob(Job):
    """Make a model forget one task (Eq. 20).

    Args:
        target: the task to forget.
        files: its files.
        name: the method's name, for the metadata.
        method: how it is forgotten.
        model: weights of the model that shall forget; ``None`` for the pretrained one.
        more: weights of further models fine-tuned on the same task, for a method that takes
            several.
        control_gram: the Gram matrices of what shall not change, for a method that reads them.
        measure: the importance that the method goes by.
        dtype: type of the weights made; ``None`` for that of ``model``.
        device: where the arithmetic is done; ``None`` for the CPU.
        part: which tensors are merged; ``None`` for all.
        coefficients: by layer; ``None`` for the method's own.

    Raises:
        StaError: ``measure`` or ``more`` does not go with the method.
    """

    kind, start_role, start_title = "forgotten", "model", "the model that shall forget"
    fallback, methods = DATA_FREE_FORGETTING, FORGET_METHODS

    def __init__(
        self,
        target: str,
        files: TaskSource,
        name: str,
        method: MergeMethod,
        *,
        model: str | None = None,
        more: Sequence[str] = (),
        control_gram: str | None = None,
        measure: str = "lp",
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        part: Part | None = None,
        coefficients: Coefficients | None = None,
    ) -> None:
        # By what they are called in messages, and in the metadata.
        others = {f"{target} ({number})": TaskSource(path) for number, path in enumerate(more, 2)}
        super().__init__(
            {target: files, **others},
            name,
            method,
            start=model,
            measure=measure,
            dtype=dtype,
            device=device,
            part=part,
            coefficients=coefficients,
        )
        refuse_several(name, method, len(more))
        self.target, self.control_gram = target, control_gram

    @override
    def scored(self) -> tuple[str, ...]:
        return (self.target,)

    @override
    def settings(self) -> dict[str, Any]:
        return {"target": self.target}
