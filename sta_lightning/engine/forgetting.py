from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from sta_lightning.arithmetic import FORGET_METHODS, MergeMethod
from sta_lightning.arithmetic.methods import refuse_several
from sta_lightning.engine.defaults import DATA_FREE_FORGETTING
from sta_lightning.engine.job import Job
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
        request: ``measure``, ``dtype``, ``device``, ``part`` and ``coefficients``, see
            :class:`~sta_lightning.engine.request.Request`.

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
        **request: Any,
    ) -> None:
        # By what they are called in messages, and in the metadata.
        others = {f"{target} ({number})": TaskSource(path) for number, path in enumerate(more, 2)}
        super().__init__({target: files, **others}, name, method, start=model, **request)
        refuse_several(name, method, len(more))
        self.target, self.control_gram = target, control_gram

    @override
    def scored(self) -> tuple[str, ...]:
        return (self.target,)

    @override
    def settings(self) -> dict[str, Any]:
        return {"target": self.target}
