"""What a benchmark refuses before any time is spent."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import get_args

from sta_lightning.benchmark.entries import (
    check_entry,
    finetunings,
    is_learned,
    made,
    needs_no_coefficient,
    statistic,
)
from sta_lightning.benchmark.results import ZERO_SHOT
from sta_lightning.benchmark.settings import BEST, BenchmarkSettings, Finetuning, ModelSettings
from sta_lightning.errors import StaError, listed
from sta_lightning.ranges import SHARE


def check_settings(settings: BenchmarkSettings) -> None:
    """Refuse settings that cannot make a run.

    Raises:
        StaError: names the field, what was found and what is allowed.
    """
    _check_models(settings.models)
    if not settings.methods:
        raise StaError("methods: name at least one method, such as {average: {method: average}}.")
    if not settings.seeds or len(set(settings.seeds)) != len(settings.seeds):
        raise StaError(f"seeds: give one or more different numbers, found {settings.seeds}.")
    for name, value in (("devices", settings.devices), ("threads", settings.threads)):
        if value < 1:
            raise StaError(f"{name}: at least 1, found {value}.")
    if not 0.0 < settings.control_share <= 1.0:
        raise StaError(f"control_share: a share in (0, 1], found {settings.control_share}.")
    odd = [key for key in (*settings.methods, *settings.forget_methods) if not re.fullmatch(r"[\w.+-]+", key)]
    if odd:
        raise StaError(
            f"methods: {listed(odd)} cannot be a key, which becomes a folder's name. Use letters, digits "
            "and _ . + -"
        )
    for key, entry in settings.methods.items():
        check_entry(f"methods.{key}", entry)
    for key, entry in settings.forget_methods.items():
        check_entry(f"forget_methods.{key}", entry)
        if made(entry, 0).many and len(settings.seeds) < 2:
            raise StaError(
                f"forget_methods.{key}: {entry.method!r} takes several fine-tunings of a task, which are "
                f"those of several seeds; found seeds {settings.seeds}. Ask for more seeds, or leave the "
                "method out."
            )
    _check_keys(settings)
    _check_curves(settings)
    _check_trade_off(settings)
    known, kinds = get_args(Finetuning), finetunings(settings)
    if unknown := [kind for kind in kinds if kind not in known]:
        raise StaError(f"finetuning: {listed(known)}; found {listed(unknown)}.")
    if settings.finetuned is not None:
        _check_pattern(settings.finetuned, len(settings.seeds))
        if kinds != ["plain"]:
            raise StaError(
                f"finetuned: the encoders are there already, and rows ask for fine-tunings of the kinds {listed(kinds)}. "
                "Leave `finetuned` out to fine-tune, or `finetuning` out of the rows."
            )


def _check_models(settings: ModelSettings) -> None:
    if len(settings.tasks) < 2:
        raise StaError(f"tasks: fusion needs at least two tasks, found {settings.tasks}")
    if len(set(settings.tasks)) != len(settings.tasks):
        raise StaError(f"tasks: each task may stand there once, found {settings.tasks}")
    if settings.control in settings.tasks:
        raise StaError(
            f"control: {settings.control!r} is among the tasks too; the control must not be fine-tuned"
        )


def _check_keys(settings: BenchmarkSettings) -> None:
    curves, known = settings.curves, settings.methods
    for name, keys in (
        ("pairs", settings.pairs),
        ("curves.p_methods", curves.p_methods if curves.p else []),
        ("curves.samples_methods", curves.samples_methods if curves.samples else []),
        ("curves.tasks_methods", curves.tasks_methods if curves.tasks else []),
        ("curves.scale_methods", curves.scale_methods),
        ("curves.level_methods", [key for key in curves.level_methods if key != ZERO_SHOT]),
        ("selection", [settings.selection] if settings.selection is not None else []),
        ("publish", [key for key in settings.publish.values() if key != BEST]),
    ):
        unknown = [key for key in keys if key not in known]
        if unknown:
            raise StaError(
                f"{name}: {listed(unknown)} is no key of methods; they are {listed(known, len(known))}."
            )
    for file, key in settings.publish.items():
        if Path(file).name != file or Path(file).suffix != ".safetensors":
            raise StaError(f"publish: {file!r} is no name of a safetensors file in the output folder.")
        if key != BEST and is_learned(known[key]):
            raise StaError(f"publish: {key!r} is learned, and only a computed merge is written to a file.")
        if key == BEST and not any(map(needs_no_coefficient, known.values())):
            raise StaError("publish: every one of the methods has a coefficient to tune; name one of them.")
    unknown = [key for key in settings.trade_off.methods if key not in settings.forget_methods]
    if unknown:
        allowed = listed(settings.forget_methods, len(settings.forget_methods))
        raise StaError(
            f"trade_off.methods: {listed(unknown)} is no key of forget_methods; they are {allowed}."
        )


def _check_curves(settings: BenchmarkSettings) -> None:
    curves, known = settings.curves, settings.methods
    for p in curves.p:
        SHARE.check(p)
    if curves.p_split not in ("test", "validation"):
        raise StaError(f"curves.p_split: test or validation, found {curves.p_split!r}.")
    wrong = [count for count in curves.samples if count < 1]
    if wrong:
        raise StaError(f"curves.samples: at least 1 each, found {wrong}.")
    most = len(settings.models.tasks)
    wrong = [count for count in curves.tasks if not 2 <= count <= most]
    if wrong:
        raise StaError(f"curves.tasks: from 2 to the number of tasks, {most}; found {wrong}.")
    scored = curves.samples_methods if curves.samples else []
    without = [key for key in scored if statistic(known[key]) is None]
    if without:
        raise StaError(f"curves.samples_methods: {listed(without)} scores no samples.")
    untuned = [key for key in curves.scale_methods if len(known[key].tune) != 1]
    if untuned:
        raise StaError(
            f"curves.scale_methods: {listed(untuned)} must tune exactly one setting to be drawn against it."
        )
    for key in curves.p_methods if curves.p else ():
        check_entry(f"curves.p_methods: {key}", replace(known[key], tune={"p": curves.p}))


def _check_trade_off(settings: BenchmarkSettings) -> None:
    for key, varied in settings.trade_off.methods.items():
        entry, where = settings.forget_methods[key], f"trade_off.methods.{key}"
        if len(varied) != 1:
            raise StaError(f"{where}: one setting is varied, found {listed(varied)}.")
        ((name, values),) = varied.items()
        check_entry(where, replace(entry, tune={name: values}))
        if made(entry, 0).many:
            raise StaError(f"{where}: a method of several fine-tunings cannot be varied here.")


def _check_pattern(pattern: str, seeds: int) -> None:
    try:
        names = {name for _, name, _, _ in Formatter().parse(pattern) if name is not None}
    except ValueError as error:
        raise StaError(f"finetuned: {pattern!r} is not understood: {error}.") from error
    if "task" not in names or names - {"task", "seed"}:
        raise StaError(
            "finetuned: a path with {task} in it, and {seed} for several fine-tunings of each task; found "
            f"{pattern!r}."
        )
    if seeds > 1 and "seed" not in names:
        raise StaError(
            f"finetuned: {pattern!r} is one fine-tuning of each task, but {seeds} seeds are asked for. Put "
            "{seed} into the path, or ask for one seed."
        )
