"""Coefficients by task and by layer, for a method that has one for all (``scale``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from sta_lightning.arithmetic.depth import depths
from sta_lightning.arithmetic.method import MergeMethod
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.registry import find_method, make_method, settings_of
from sta_lightning.arithmetic.sources import Formula
from sta_lightning.errors import StaError, listed
from sta_lightning.ranges import FINITE, check_layers

Layers = Mapping[str, float | Sequence[float]]
"""Pattern of whole names of tensors -> a coefficient, or several over the depth."""
Scale = float | Mapping[str, float]
"""A coefficient, or coefficients by task."""


@dataclass(frozen=True)
class Coefficients:
    """What takes the place of a method's one coefficient.

    Args:
        tasks: task name -> what its task vector is multiplied with before the method, whose own
            coefficient is 1 then: for task arithmetic the sum of scale_i * delta_i. Empty for none.
        layers: pattern of whole names of tensors (``*``, ``?``, ``[…]``) -> the method's
            coefficient in the tensors that it fits, of several patterns the first. A list of
            numbers runs from the first of the model's blocks to the last, linearly from each to the
            next, over the depth that LiNeS has: what lies in no block is as deep as the first.
        default: what the tasks have that ``tasks`` does not name.

    Raises:
        StaError: if a coefficient is no finite number, or a list is empty.
    """

    tasks: Mapping[str, float] = field(default_factory=dict)
    layers: Layers = field(default_factory=dict)
    default: float = 1.0

    def __post_init__(self) -> None:
        for task, scale in self.tasks.items():
            FINITE.check(scale, "scale", task)
        check_layers(self.layers)

    def over(self, tasks: Iterable[str]) -> Coefficients:
        """The same with a coefficient for each of the tasks, if it is by task.

        Raises:
            StaError: if it names another.
        """
        names = list(tasks)
        if unknown := self.tasks.keys() - set(names):
            raise StaError(
                f"scale: there is no task {listed(sorted(unknown))}; the tasks are {listed(names)}. Give coefficients by these "
                "names."
            )
        return replace(self, tasks={task: self.tasks.get(task, self.default) for task in names if self.tasks})

    def check(self, names: Iterable[str]) -> None:
        """Refuse patterns that fit none of the tensors that are merged.

        Raises:
            StaError: names them, and tells what there is.
        """
        known = list(names)
        idle = [one for one in self.layers if not any(fnmatchcase(name, one) for name in known)]
        if idle:
            raise StaError(
                f"scale_layers: no tensor that is merged fits {listed(idle)}; there are {listed(known)}. Patterns are of whole "
                "names: '*.bias', '*.layer.0.*'."
            )

    def settings(self) -> dict[str, object]:
        """What there is of it by the names of the options, for a file's metadata.

        The patterns are pairs in a list: metadata has the keys of a mapping in another order.
        """
        found = {"scale": dict(self.tasks), "scale_layers": [list(pair) for pair in self.layers.items()]}
        return {name: given for name, given in found.items() if given}

    def adjusted(self, problem: Problem) -> Problem:
        """The same merge with these; the method's own coefficient is 1 where tasks have theirs."""
        depth = depths(problem.names) if self.layers else {}
        scales = {name: scale for name in depth if (scale := self._at(name, depth[name])) is not None}
        if self.tasks:
            problem = problem.of_vectors(
                lambda task, _, *parts: Formula(
                    lambda finetuned, origin: self.tasks[task] * (finetuned - origin), *parts
                )
            )
        return replace(problem, scales=scales)

    def _at(self, name: str, depth: float) -> float | None:
        """The coefficient of one tensor, or None for that of all."""
        given = next((scale for one, scale in self.layers.items() if fnmatchcase(name, one)), None)
        if given is None:
            return None
        values = np.atleast_1d(np.asarray(given, dtype=np.float64))
        return float(np.interp(depth, np.linspace(0, 1, len(values)), values))


def method_with(
    name: str,
    methods: Mapping[str, type[MergeMethod]],
    scale: Scale | None = None,
    scale_layers: Layers | None = None,
    settings: Mapping[str, Any] | None = None,
    **common: Any,
) -> tuple[MergeMethod, Coefficients]:
    """A method by its name, and what takes the place of its one coefficient.

    Args:
        name: see :func:`~sta_lightning.arithmetic.registry.make_method`, as the others.
        methods: where it is found.
        scale: its coefficient, which may stand among ``settings`` too, or those of the tasks.
        scale_layers: see :class:`Coefficients`.
        settings: settings by name, all of which it must have.
        common: settings of which it takes those that it has.

    Raises:
        StaError: as :func:`~sta_lightning.arithmetic.registry.make_method`, or if coefficients by
            task or layer are given and it has none.
    """
    rest = dict(settings or {})
    given: Any = rest.pop("scale") if scale is None and "scale" in rest else scale
    by_task = given if isinstance(given, Mapping) else {}
    coefficients = Coefficients(by_task, scale_layers or {})
    if asked := coefficients.settings():
        has = settings_of(find_method(name, methods))
        if "scale" not in has:
            raise StaError(
                f"method '{name}' has no coefficient (scale), and {' and '.join(asked)} is given. Leave it out, or choose "
                "'task_arithmetic'."
            )
        if by_task:
            coefficients, given = replace(coefficients, default=has["scale"]), 1.0
    return make_method(name, methods, scale=given, settings=rest, **common), coefficients
