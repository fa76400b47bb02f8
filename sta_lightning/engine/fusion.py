from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from sta_lightning.arithmetic import FUSION_METHODS, Dare, MergeMethod
from sta_lightning.arithmetic.checks import check_statistics
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.states import Statistics
from sta_lightning.engine.defaults import DATA_FREE
from sta_lightning.engine.job import Job
from sta_lightning.engine.sources import TaskSource
from sta_lightning.errors import StaError


class FusionJob(Job):
    """Fuse encoders that were fine-tuned on several tasks (Eq. 14-19).

    Args:
        tasks: by task name: the files of that task.
        name: the method's name, for the metadata.
        method: how they are fused.
        base: weights of the model that masked task vectors are added to; ``None`` for the
            pretrained one.
        dare: what is dropped from the task vectors before they are merged; ``None`` to drop none.
        statistics: what running statistics become, see
            :class:`~sta_lightning.arithmetic.problem.Problem`.
        request: ``measure``, ``dtype``, ``device``, ``part`` and ``coefficients``, see
            :class:`~sta_lightning.engine.request.Request`.

    Raises:
        StaError: ``measure``, ``dare`` or ``base`` does not go with the method.
    """

    kind, start_role, start_title = "fused", "base", "the model that is added to"
    fallback, methods = DATA_FREE, FUSION_METHODS

    def __init__(
        self,
        tasks: Mapping[str, TaskSource],
        name: str,
        method: MergeMethod,
        *,
        base: str | None = None,
        dare: Dare | None = None,
        statistics: Statistics = "pretrained",
        **request: Any,
    ) -> None:
        super().__init__(tasks, name, method, start=base, **request)
        self.dare, self.statistics = dare, check_statistics(statistics)
        self.about: Mapping[str, Any] = {}
        if dare is not None and method.takes_vectors:
            raise StaError(
                f"method '{name}' adds masked task vectors as they are; DARE cannot be put in front of it. Leave dare out."
            )
        if base is not None and not method.takes_vectors:
            raise StaError(
                f"method '{name}' starts from the pretrained encoder, but base='{base}' is given. Only masked task vectors "
                "(method 'vectors') are added to another model."
            )

    @override
    def adjusted(self, problem: Problem) -> Problem:
        problem = dataclasses.replace(problem, statistics=self.statistics)
        return super().adjusted(problem if self.dare is None else self.dare.drops(problem))

    @override
    def settings(self) -> dict[str, Any]:
        dare = {} if self.dare is None else {"dare": dataclasses.asdict(self.dare)}
        statistics = {} if self.statistics == "pretrained" else {"statistics": self.statistics}
        return {"tasks": sorted(self.tasks), **statistics, **dare, **self.about}
