"""Everything that one benchmark depends on, in one dataclass that a YAML file fills."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from string import Formatter
from typing import Any

from sta_lightning.arithmetic.checks import check_share
from sta_lightning.benchmark.entries import MethodEntry, entries
from sta_lightning.errors import StaError, listed
from sta_lightning.experiment.settings import ModelSettings, check_models, expand_models, expand_path


@dataclass(frozen=True)
class Curves:
    """What is varied, and for which methods; an empty list leaves a curve out.

    Args:
        p: values of p for the masked methods in ``p_methods``; values of one rank are computed
            once.
        p_methods: keys of methods.
        samples: how many calibration samples the methods in ``samples_methods`` score on.
        samples_methods: keys of methods.
        tasks: how many tasks are fused by the methods in ``tasks_methods``: subsets of neighbours
            in the list of tasks, so that every task is fused equally often.
        tasks_methods: keys of methods.
        scale_methods: keys of methods whose tuned coefficient is drawn against validation accuracy.
    """

    p: list[float] = field(default_factory=list)
    p_methods: list[str] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    samples_methods: list[str] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    tasks_methods: list[str] = field(default_factory=list)
    scale_methods: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TradeOff:
    """Forgetting against p and γ.

    Args:
        methods: key of a forgetting method -> its setting that is varied (``p`` or ``scale``) ->
            values.
    """

    methods: dict[str, dict[str, list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchmarkSettings:
    """One benchmark: models of several seeds, every method on them, tables, curves, a report.

    Args:
        title: of the report.
        output: folder for everything that the run writes.
        models: encoder, tasks, fine-tuning and images; its ``seed`` is not read.
        finetuned: fine-tuned encoders that are there already, a path with ``{task}`` and, if there
            are several fine-tunings of each task, ``{seed}`` in it; nothing to fine-tune.
        seeds: of the fine-tunings and of all that is drawn at random.
        methods: key -> a fusing method, in the order of the table.
        pairs: keys of the methods that fuse every pair of tasks (the paper's Fig. 3); empty for
            none.
        forget_methods: key -> a forgetting method (the paper's Table 3); empty for none.
        control_share: share of the pretrained model's validation accuracy on the control that a
            tuned forgetting must keep.
        curves: what is varied.
        trade_off: forgetting against p and γ.
        selection: key of the method whose shares kept are drawn (the paper's Fig. 4); nothing for
            none.
        devices: processes that work at the same time: on a CPU, or one a GPU. The numbers do not
            depend on it.
        threads: threads of each process on a CPU; the numbers may depend on it in their last
            digits.
    """

    title: str = "Merging methods"
    output: str = "runs/benchmark"
    models: ModelSettings = field(default_factory=ModelSettings)
    finetuned: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    methods: dict[str, MethodEntry] = field(default_factory=dict)
    pairs: list[str] = field(default_factory=list)
    forget_methods: dict[str, MethodEntry] = field(default_factory=dict)
    control_share: float = 0.95
    curves: Curves = field(default_factory=Curves)
    trade_off: TradeOff = field(default_factory=TradeOff)
    selection: str | None = None
    devices: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        """Let the parts be given as plain mappings."""
        object.__setattr__(self, "methods", entries(self.methods))
        object.__setattr__(self, "forget_methods", entries(self.forget_methods))

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)


def expand_benchmark(settings: BenchmarkSettings) -> BenchmarkSettings:
    """Replace ``${NAME}`` and ``~`` in paths.

    Raises:
        StaError: when an environment variable is not set.
    """
    return replace(
        settings,
        models=expand_models(settings.models),
        output=expand_path(settings.output, "output"),
        finetuned=None if settings.finetuned is None else expand_path(settings.finetuned, "finetuned"),
    )


def check_benchmark(settings: BenchmarkSettings) -> None:
    """Refuse settings that cannot make a run, before any time is spent.

    Raises:
        StaError: names the field, what was found and what is allowed.
    """
    check_models(settings.models)
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
            f"methods: {listed(odd)} cannot be a key, which becomes a folder's name. Use letters, digits and _ . + -"
        )
    for key, entry in settings.methods.items():
        entry.check(key)
    for key, entry in settings.forget_methods.items():
        entry.check(key, forgetting=True)
        if entry.make(0, forgetting=True).many and len(settings.seeds) < 2:
            raise StaError(
                f"forget_methods.{key}: {entry.method!r} takes several fine-tunings of a task, which are those of several "
                f"seeds; found seeds {settings.seeds}. Ask for more seeds, or leave the method out."
            )
    _check_keys(settings)
    if settings.finetuned is not None:
        _check_pattern(settings.finetuned, len(settings.seeds))


def statistics_wanted(settings: BenchmarkSettings) -> list[tuple[str, int]]:
    """Every (measure, samples) that some method or curve asks for."""
    wanted: dict[tuple[str, int], None] = {}
    for table, forgetting in ((settings.methods, False), (settings.forget_methods, True)):
        for variant in [variant for entry in table.values() for variant in entry.variants]:
            what = variant.statistic(forgetting=forgetting)
            if what is not None:
                wanted[what, variant.samples or settings.models.samples] = None
    for key in settings.curves.samples_methods if settings.curves.samples else ():
        what = settings.methods[key].statistic()
        assert what is not None
        wanted |= dict.fromkeys((what, samples) for samples in settings.curves.samples)
    return list(wanted)


def _check_keys(settings: BenchmarkSettings) -> None:
    curves, known = settings.curves, settings.methods
    for name, keys in (
        ("pairs", settings.pairs),
        ("curves.p_methods", curves.p_methods if curves.p else []),
        ("curves.samples_methods", curves.samples_methods if curves.samples else []),
        ("curves.tasks_methods", curves.tasks_methods if curves.tasks else []),
        ("curves.scale_methods", curves.scale_methods),
        ("selection", [settings.selection] if settings.selection is not None else []),
    ):
        unknown = [key for key in keys if key not in known]
        if unknown:
            raise StaError(
                f"{name}: {listed(unknown)} is no key of methods; they are {listed(known, len(known))}."
            )
    unknown = [key for key in settings.trade_off.methods if key not in settings.forget_methods]
    if unknown:
        allowed = listed(settings.forget_methods, len(settings.forget_methods))
        raise StaError(
            f"trade_off.methods: {listed(unknown)} is no key of forget_methods; they are {allowed}."
        )
    for p in curves.p:
        check_share(p)
    wrong = [count for count in curves.samples if count < 1]
    if wrong:
        raise StaError(f"curves.samples: at least 1 each, found {wrong}.")
    most = len(settings.models.tasks)
    wrong = [count for count in curves.tasks if not 2 <= count <= most]
    if wrong:
        raise StaError(f"curves.tasks: from 2 to the number of tasks, {most}; found {wrong}.")
    scored = curves.samples_methods if curves.samples else []
    without = [key for key in scored if known[key].statistic() is None]
    if without:
        raise StaError(f"curves.samples_methods: {listed(without)} scores no samples.")
    untuned = [key for key in curves.scale_methods if len(known[key].tune) != 1]
    if untuned:
        raise StaError(
            f"curves.scale_methods: {listed(untuned)} must tune exactly one setting to be drawn against it."
        )
    for key in curves.p_methods if curves.p else ():
        _check_varied(f"curves.p_methods: {key}", known[key], "p")
    for key, varied in settings.trade_off.methods.items():
        entry = settings.forget_methods[key]
        if len(varied) != 1:
            raise StaError(f"trade_off.methods.{key}: one setting is varied, found {listed(varied)}.")
        ((name, values),) = varied.items()
        _check_varied(f"trade_off.methods.{key}", entry, name, forgetting=True)
        replace(entry, tune={name: values}).check(key, forgetting=True)
        if entry.make(0, forgetting=True).many:
            raise StaError(
                f"trade_off.methods.{key}: a method of several fine-tunings cannot be varied here."
            )


def _check_varied(where: str, entry: MethodEntry, name: str, *, forgetting: bool = False) -> None:
    try:
        entry.check_varied(name, forgetting=forgetting)
    except StaError as error:
        raise StaError(f"{where}: {error}") from error


def _check_pattern(pattern: str, seeds: int) -> None:
    try:
        names = {name for _, name, _, _ in Formatter().parse(pattern) if name is not None}
    except ValueError as error:
        raise StaError(f"finetuned: {pattern!r} is not understood: {error}.") from error
    if "task" not in names or names - {"task", "seed"}:
        raise StaError(
            f"finetuned: a path with {{task}} in it, and {{seed}} for several fine-tunings of each task; found {pattern!r}."
        )
    if seeds > 1 and "seed" not in names:
        raise StaError(
            f"finetuned: {pattern!r} is one fine-tuning of each task, but {seeds} seeds are asked for. Put {{seed}} into the "
            "path, or ask for one seed."
        )
