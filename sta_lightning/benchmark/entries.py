"""What an entry of a benchmark is as a method: made, keyed, described, checked."""

from __future__ import annotations

import inspect
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sta_lightning.arithmetic import FORGET_METHODS, FUSION_METHODS, Dare, MergeMethod, make_method
from sta_lightning.arithmetic.importance import MEASURES
from sta_lightning.arithmetic.registry import LEARNED_METHODS, find_method
from sta_lightning.benchmark.results import FINE_TUNED, MethodInfo
from sta_lightning.benchmark.settings import (
    BenchmarkSettings,
    Choice,
    Finetuning,
    ForgettingEntry,
    MethodEntry,
)
from sta_lightning.errors import StaError, listed


def is_learned(entry: MethodEntry) -> bool:
    """Whether it is trained, and not computed in one pass over the weights."""
    return entry.method in LEARNED_METHODS


def made(entry: MethodEntry, seed: int) -> MergeMethod:
    """The method with the entry's settings.

    Raises:
        StaError: if it is unknown, or a setting is.
    """
    return make_method(
        entry.method,
        _methods(entry),
        scale=entry.scale,
        settings=entry.settings,
        p=entry.p,
        normalize=entry.normalize,
        seed=seed,
    )


def dropping(entry: MethodEntry, seed: int) -> Dare | None:
    """What DARE drops in front."""
    return None if entry.dare is None else Dare(entry.dare, seed=seed)


def statistic(entry: MethodEntry) -> str | None:
    """The measure of ``sta score`` that it needs; ``None`` if the weights are enough."""
    if is_learned(entry):
        return "gram" if LEARNED_METHODS[entry.method].reads_grams else None
    method = made(entry, 0)
    if method.needs_grams:
        return "gram"
    measure = MEASURES.get(method.measure or entry.measure)
    return measure.file if method.needs_importance and measure is not None else None


def every_entry(settings: BenchmarkSettings) -> list[MethodEntry]:
    """The rows of both tables."""
    return [*settings.methods.values(), *settings.forget_methods.values()]


def finetunings(settings: BenchmarkSettings) -> list[Finetuning]:
    """How models are fine-tuned: as usual first, then the other kinds that some row asks for."""
    return list(dict.fromkeys(("plain", *(entry.finetuning for entry in every_entry(settings)))))


def references(settings: BenchmarkSettings) -> dict[str, tuple[Finetuning, bool]]:
    """Key of a row of fine-tuned models -> their kind, and whether by their linearisation."""
    found: dict[str, tuple[Finetuning, bool]] = {FINE_TUNED: ("plain", False)}
    return found | {entry.reference: (entry.finetuning, entry.tangent) for entry in every_entry(settings)}


def statistics_wanted(settings: BenchmarkSettings, finetuning: Finetuning) -> list[tuple[str, int]]:
    """Every (measure, samples) that some method or curve asks for of models of one kind."""
    wanted: dict[tuple[str, int], None] = {}
    for entry in every_entry(settings):
        for variant in entry.variants if entry.finetuning == finetuning else ():
            what = statistic(variant)
            if what is not None:
                wanted[what, variant.samples or settings.models.samples] = None
    for key in settings.curves.samples_methods if settings.curves.samples else ():
        if settings.methods[key].finetuning != finetuning:
            continue
        what = statistic(settings.methods[key])
        assert what is not None
        wanted |= dict.fromkeys((what, samples) for samples in settings.curves.samples)
    return list(wanted)


def control_wanted(settings: BenchmarkSettings) -> list[int]:
    """The numbers of the control's samples of which a forgetting or a fit reads Gram matrices."""
    variants = (variant for entry in settings.forget_methods.values() for variant in entry.variants)
    wanted = (each.samples or settings.models.samples for each in variants if made(each, 0).spares)
    fits = [settings.models.samples] if "spare" in finetunings(settings) else []
    return list(dict.fromkeys((*fits, *wanted)))


def entry_key(entry: MethodEntry, seed: int) -> dict[str, Any]:
    """Everything that the result depends on besides files and source, for a step's key."""
    if is_learned(entry):
        return {"method": entry.method, "settings": entry.settings, "seed": seed}
    method = made(entry, seed)
    key: dict[str, Any] = {"method": entry.method, **method.settings()}
    if method.needs_importance:
        key["measure"] = method.measure or entry.measure
    drops = dropping(entry, seed)
    return key if drops is None else {**key, "dare": asdict(drops)}


def entry_files(entry: MethodEntry) -> dict[str, Path]:
    """The files of methods of one's own, on whose content the result depends."""
    methods = _methods(entry)
    found: dict[str, Path] = {}
    for name in (entry.method, *entry.settings.values()):
        if isinstance(name, str) and name not in methods and ("." in name or ":" in name):
            file = inspect.getsourcefile(sys.modules[find_method(name, methods).__module__])
            if file is not None:
                found[f"method/{name}"] = Path(file)
    return found


def entry_source(entry: MethodEntry) -> set[str]:
    """The modules that define the method, for ``source_digest``."""
    if is_learned(entry):
        return {"sta_lightning.benchmark.learning"}
    methods = _methods(entry)
    # LiNeS and its like name a method inside their settings.
    names = [entry.method, *(name for name in entry.settings.values() if name in list(methods))]
    return {base.__module__ for name in names for base in find_method(name, methods).__mro__}


def shown(entry: MethodEntry, choice: Choice) -> dict[str, Any]:
    """The settings for a reader: the coefficient, what was tuned, what the entry sets."""
    chosen = entry.with_choice(choice)
    fits: dict[str, str] = {} if entry.finetuning == "plain" else {"fits": entry.finetuning}
    fits |= {"evaluated": "tangent"} if entry.tangent else {}
    if is_learned(chosen):
        return {**chosen.settings, **fits}
    method = made(chosen, 0)
    has = method.settings()
    names = [name for name in ("p", "scale") if name in has]
    found = {name: has[name] for name in (*names, *chosen.settings)}
    if method.needs_importance:
        found["measure"] = method.measure or chosen.measure
    if "normalize" in has and has["normalize"] != "tensor":
        found["normalize"] = has["normalize"]
    if chosen.dare is not None:
        found["dare"] = chosen.dare
    return found | {name: value for name, value in choice.items() if name not in has} | fits


def method_info(key: str, entry: MethodEntry) -> MethodInfo:
    """The row's name and properties."""
    if is_learned(entry):
        card: Any = LEARNED_METHODS[entry.method]
        data = card.data
    else:
        card = find_method(entry.method, _methods(entry))
        needs = statistic(entry) is not None or not card.needs_importance
        data = card.data if needs else MergeMethod.data
    label, tunes = entry.label or card.title, card.coefficient is not None
    forgets = entry.method in FORGET_METHODS or isinstance(entry, ForgettingEntry)
    fuses = entry.method not in FORGET_METHODS or entry.method in FUSION_METHODS
    return MethodInfo(
        *(key, label, card.summary, data, tunes, card.source, entry.group, entry.paper, fuses, forgets),
        entry.reference,
    )


def needs_no_coefficient(entry: MethodEntry) -> bool:
    """Whether it is computed, not learned, by a method without a coefficient to tune."""
    return not is_learned(entry) and find_method(entry.method, _methods(entry)).coefficient is None


def check_entry(where: str, entry: MethodEntry) -> None:
    """Refuse an entry that cannot be run.

    Raises:
        StaError: names the field it stands in (``where``), such as ``methods.ties``.
    """
    for name, values in entry.tune.items():
        if not values:
            raise StaError(f"{where}.tune.{name}: give at least one value, or leave it out.")
    try:
        for variant in entry.variants:
            if is_learned(variant):
                _check_learned(variant)
            else:
                made(variant, 0)
            dropping(variant, 0)
        if isinstance(entry, ForgettingEntry) and entry.dare is not None:
            raise StaError("dare goes in front of merging methods; leave it out of a forgetting.")
        if is_learned(entry) and entry.tune:
            raise StaError(f"{entry.method!r} learns its coefficients; leave tune out.")
        for name in entry.tune:
            _check_varied(entry, name)
    except StaError as error:
        raise StaError(f"{where}: {error}") from error


def _check_varied(entry: MethodEntry, name: str) -> None:
    method = made(entry, 0)
    allowed = [*method.settings()]
    if method.needs_importance and method.measure is None:
        allowed.append("measure")
    if not isinstance(entry, ForgettingEntry):
        allowed.append("dare")
    if name not in allowed:
        raise StaError(
            f"{name!r} was asked to vary, and method {entry.method!r} has no such setting. It has "
            f"{listed(allowed, len(allowed))}."
        )


def _check_learned(entry: MethodEntry) -> None:
    if isinstance(entry, ForgettingEntry):
        raise StaError(f"{entry.method!r} merges; it makes nothing forget.")
    known = LEARNED_METHODS[entry.method].settings
    unknown = [name for name in entry.settings if name not in known]
    if unknown:
        raise StaError(
            f"{entry.method!r} has no setting {listed(unknown)}; it has {listed(known, len(known))}."
        )
    if entry.scale is not None or entry.dare is not None:
        raise StaError(f"{entry.method!r} takes neither scale nor dare; leave them out.")


def _methods(entry: MethodEntry) -> dict[str, type[MergeMethod]]:
    return FORGET_METHODS if isinstance(entry, ForgettingEntry) else FUSION_METHODS
