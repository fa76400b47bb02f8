"""One method of a benchmark: its published settings, and the grid among which validation images choose."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sta_lightning.arithmetic import FORGET_METHODS, FUSION_METHODS, Dare, MergeMethod, make_method
from sta_lightning.arithmetic.importance import MEASURES
from sta_lightning.arithmetic.registry import LEARNED_METHODS, find_method
from sta_lightning.benchmark.results import Group, MethodInfo
from sta_lightning.errors import StaError, listed

Choice = dict[str, Any]
"""Settings of a method that differ from its entry's, by name."""

_LEARNING = ("sta_lightning.modules.adamerging", "sta_lightning.tasks.unlabelled")

# Settings of the entry itself; a grid's other names are the method's own.
_OWN = ("p", "scale", "normalize", "measure", "dare")


@dataclass(frozen=True)
class MethodEntry:
    """One row of a benchmark.

    Args:
        method: name of a method, as ``sta methods`` lists them, or where one of your own is.
        label: what the reader sees; the method's title if not given.
        group: which kind of row it is: ``sta``, ``data-free``, ``data`` or ``control``.
        measure: importance that a method goes by, if it goes by one.
        samples: images a task for the importance, the Fisher information or the Gram matrices;
            nothing for the benchmark's.
        p: quantile of the masked methods.
        scale: the method's coefficient; nothing for its default.
        normalize: how importance is normalised.
        dare: share of the task vectors' entries that DARE drops in front; nothing for none.
        settings: further settings of the method, by name.
        tune: setting -> values; the validation images choose among all combinations. Nothing where
            there is nothing to tune.
        paper: the method's row in the paper's table, if it has one.
    """

    method: str = "sta"
    label: str = ""
    group: Group = "data-free"
    measure: str = "lp"
    samples: int | None = None
    p: float = 0.7
    scale: float | None = None
    normalize: str = "tensor"
    dare: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, list[Any]] = field(default_factory=dict)
    paper: str | None = None

    @property
    def learned(self) -> bool:
        """Whether it is trained, and not computed in one pass over the weights."""
        return self.method in LEARNED_METHODS

    def choices(self) -> list[Choice]:
        """Every combination of the grid, in its order."""
        if not self.tune:
            return []
        return [
            dict(zip(self.tune, values, strict=True)) for values in itertools.product(*self.tune.values())
        ]

    def with_choice(self, choice: Choice) -> MethodEntry:
        """The entry with some settings changed, and nothing left to tune."""
        own = {name: value for name, value in choice.items() if name in _OWN}
        others = {name: value for name, value in choice.items() if name not in _OWN}
        kept = {name: value for name, value in self.settings.items() if name not in own}
        return replace(self, **own, settings={**kept, **others}, tune={})

    @property
    def variants(self) -> list[MethodEntry]:
        """The entry as published, and with every choice of the grid."""
        return [self.with_choice(choice) for choice in ({}, *self.choices())]

    def make(self, seed: int, *, forgetting: bool = False) -> MergeMethod:
        """The method with these settings.

        Raises:
            StaError: if it is unknown, or a setting is.
        """
        return make_method(
            self.method,
            FORGET_METHODS if forgetting else FUSION_METHODS,
            scale=self.scale,
            settings=self.settings,
            p=self.p,
            normalize=self.normalize,
            seed=seed,
        )

    def dropping(self, seed: int) -> Dare | None:
        """What DARE drops in front."""
        return None if self.dare is None else Dare(self.dare, seed=seed)

    def statistic(self, *, forgetting: bool = False) -> str | None:
        """What must be scored for it: a measure of ``sta score``; nothing if the weights are enough."""
        if self.learned:
            return None
        method = self.make(0, forgetting=forgetting)
        if method.needs_grams:
            return "gram"
        measure = MEASURES.get(method.measure or self.measure)
        return measure.file if method.needs_importance and measure is not None else None

    def key(self, seed: int, *, forgetting: bool = False) -> dict[str, Any]:
        """Everything that the result depends on besides files, for a step's key."""
        if self.learned:
            return {"method": self.method, "settings": self.settings, "seed": seed}
        method = self.make(seed, forgetting=forgetting)
        key: dict[str, Any] = {"method": self.method, **method.settings()}
        if method.needs_importance:
            key["measure"] = method.measure or self.measure
        if self.dare is not None:
            key["dare"] = asdict(self.dropping(seed))  # type: ignore[arg-type]
        return key

    def shown(self, choice: Choice, *, forgetting: bool = False) -> dict[str, Any]:
        """The settings that a reader wants to see: the coefficient, what was tuned, what the entry sets."""
        entry = self.with_choice(choice)
        if entry.learned:
            return dict(entry.settings)
        made = entry.make(0, forgetting=forgetting)
        has = made.settings()
        names = [name for name in ("p", "scale") if name in has]
        shown = {name: has[name] for name in (*names, *entry.settings)}
        if "normalize" in has and has["normalize"] != "tensor":
            shown["normalize"] = has["normalize"]
        if entry.dare is not None:
            shown["dare"] = entry.dare
        return shown | {name: value for name, value in choice.items() if name not in has}

    def files(self, *, forgetting: bool = False) -> dict[str, Path]:
        """The files of methods of one's own, on whose content the result depends."""
        methods = FORGET_METHODS if forgetting else FUSION_METHODS
        found: dict[str, Path] = {}
        for name in (self.method, *self.settings.values()):
            if isinstance(name, str) and name not in methods and ("." in name or ":" in name):
                file = inspect.getsourcefile(sys.modules[find_method(name, methods).__module__])
                if file is not None:
                    found[f"method/{name}"] = Path(file)
        return found

    def source(self, *, forgetting: bool = False) -> tuple[str, ...]:
        """The modules of the package that the method is defined in, on whose source the result depends."""
        if self.learned:
            return _LEARNING
        methods = FORGET_METHODS if forgetting else FUSION_METHODS
        inner = [
            methods[name] for name in self.settings.values() if isinstance(name, str) and name in methods
        ]
        classes = (find_method(self.method, methods), *inner)
        return tuple({base.__module__ for found in classes for base in found.__mro__})

    def info(self, key: str, *, forgetting: bool = False) -> MethodInfo:
        """The row's name and properties."""
        if self.learned:
            card = LEARNED_METHODS[self.method]
            title, summary, data, coefficient, source = (
                card.title,
                card.summary,
                card.data,
                card.coefficient,
                card.source,
            )
        else:
            made = find_method(self.method, FORGET_METHODS if forgetting else FUSION_METHODS)
            title, summary, coefficient, source = made.title, made.summary, made.coefficient, made.source
            statistic = self.statistic(forgetting=forgetting)
            data = made.data if statistic is not None or not made.needs_importance else "nothing"
        return MethodInfo(
            key,
            self.label or title,
            summary,
            data,
            coefficient is not None,
            source,
            self.group,
            self.paper,
        )

    def check(self, key: str, *, forgetting: bool = False) -> None:
        """Refuse settings that cannot be run.

        Raises:
            StaError: names the entry.
        """
        for name, values in self.tune.items():
            if not values:
                raise StaError(f"methods.{key}.tune.{name}: give at least one value, or leave it out.")
        try:
            for entry in self.variants:
                if entry.learned:
                    _check_learned(entry, forgetting)
                else:
                    entry.make(0, forgetting=forgetting)
                entry.dropping(0)
            if forgetting and self.dare is not None:
                raise StaError("dare goes in front of merging methods; leave it out of a forgetting.")
            if self.learned and self.tune:
                raise StaError(f"{self.method!r} learns its coefficients; leave tune out.")
            for name in self.tune:
                self.check_varied(name, forgetting=forgetting)
        except StaError as error:
            raise StaError(f"methods.{key}: {error}") from error

    def check_varied(self, name: str, *, forgetting: bool = False) -> None:
        """Refuse to vary a setting that changes nothing.

        Raises:
            StaError: if the method has no such setting.
        """
        made = self.make(0, forgetting=forgetting)
        allowed = [*made.settings()]
        if made.needs_importance and made.measure is None:
            allowed.append("measure")
        if not forgetting:
            allowed.append("dare")
        if name not in allowed:
            raise StaError(
                f"{name!r} was asked to vary, and method {self.method!r} has no such setting. It has "
                f"{listed(allowed, len(allowed))}."
            )


def _check_learned(entry: MethodEntry, forgetting: bool) -> None:
    if forgetting:
        raise StaError(f"{entry.method!r} merges; it makes nothing forget.")
    known = LEARNED_METHODS[entry.method].settings
    unknown = [name for name in entry.settings if name not in known]
    if unknown:
        raise StaError(
            f"{entry.method!r} has no setting {listed(unknown)}; it has {listed(known, len(known))}."
        )
    if entry.scale is not None or entry.dare is not None:
        raise StaError(f"{entry.method!r} takes neither scale nor dare; leave them out.")


def entries(given: Mapping[str, Any]) -> dict[str, MethodEntry]:
    """Entries from plain mappings, as a YAML file has them.

    Raises:
        StaError: if an entry has an unknown field.
    """
    built: dict[str, MethodEntry] = {}
    for key, value in given.items():
        if isinstance(value, MethodEntry):
            built[key] = value
            continue
        unknown = [name for name in value or {} if name not in MethodEntry.__dataclass_fields__]
        if unknown:
            allowed = listed(MethodEntry.__dataclass_fields__, 20)
            raise StaError(
                f"methods.{key}: {listed(unknown)} is not a field of a method; they are {allowed}."
            )
        built[key] = MethodEntry(**(value or {}))
    return built
