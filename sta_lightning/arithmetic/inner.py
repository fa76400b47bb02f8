"""Methods that are made of another method's task vector."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from sta_lightning.arithmetic.entries import Entries
from sta_lightning.arithmetic.method import Survey, VectorMethod
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.registry import FUSION_METHODS, find_method, has_setting, make_method
from sta_lightning.errors import StaError, listed


class OfAnother(VectorMethod):
    """A method with a setting ``inner``, the name of another one that makes a task vector.

    The other has a coefficient of 1 where it has one, and its defaults besides. What it asks the
    engine for, this one asks for.

    Raises:
        StaError: if ``inner`` is unknown, makes no task vector, or is itself made of another.
    """

    inner: str

    def __post_init__(self) -> None:
        super().__post_init__()
        found = find_method(self.inner, FUSION_METHODS)
        if not issubclass(found, VectorMethod) or issubclass(found, OfAnother):
            able = [
                name
                for name, method in FUSION_METHODS.items()
                if issubclass(method, VectorMethod) and not issubclass(method, OfAnother)
            ]
            raise StaError(
                f"{self.title} cannot start from what '{self.inner}' makes, which is no single task vector of its own. "
                f"Choose one of {listed(able, len(able))}."
            )
        settings = {"scale": 1.0} if has_setting(found, "scale") else None
        made = make_method(self.inner, FUSION_METHODS, settings=settings)
        object.__setattr__(self, "method", made)
        for name in ("scope", "side_by_side", "data", "needs_importance", "measure", "needs_grams"):
            object.__setattr__(self, name, getattr(made, name))

    @property
    def _made(self) -> VectorMethod:
        return vars(self)["method"]  # type: ignore[no-any-return]

    @override
    def check(self, problem: Problem) -> None:
        self._made.check(problem)

    @override
    def prepare(self, survey: Survey) -> Any:
        return self._made.prepare(survey)

    @override
    def prepare_tensor(self, entries: Entries, prepared: Any) -> Any:
        return self._made.prepare_tensor(entries, prepared)
