"""The tables of a benchmark's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from sta_lightning.benchmark.report import paper
from sta_lightning.benchmark.report.numbers import (
    SETTINGS,
    averages,
    forget_runs,
    forgotten,
    kept_accuracy,
    label,
    runs,
    settings_text,
    spread,
    tagged,
)
from sta_lightning.benchmark.results import BenchmarkResults, MethodInfo, Setting, Spread
from sta_lightning.report.grid import Cell, Column, Grid, Line, Number

_KINDS = {"reference": "reference", "sta": "sta"}


def number(found: Spread | None, published: float | None = None) -> Cell:
    """A cell of a spread."""
    return None if found is None else Number(found.mean, found.std, published)


def fusion_grid(results: BenchmarkResults) -> Grid:
    """The layout of the paper's Table 2: a row per method and setting, a column per task."""
    tasks = results.tasks
    lines = []
    has_share = any(kept_accuracy(results, (info.key, setting)) for info, setting in runs(results))
    for info, setting in runs(results):
        run = (info.key, setting)
        row = info.paper if setting == "published" else None
        by_seed = results.fused(*run)
        cells: list[Cell] = [
            number(
                Spread.of([one.accuracy[task] for one in by_seed if task in one.accuracy]),
                paper.fusion(row, task, tasks),
            )
            for task in tasks
        ]
        cells.append(number(spread(averages(results, run)), paper.fusion(row, paper.AVERAGE, tasks)))
        if has_share:
            cells.append(number(kept_accuracy(results, run)))
        cells.append(settings_text([one.chosen for one in by_seed]) or None)
        lines.append(row_of(info, tagged(results, run), cells))
    columns = [Column(spaced(task), better="high") for task in (*tasks, paper.AVERAGE)]
    columns += [Column("of fine-tuned (%)")] if has_share else []
    grid = Grid(
        name="fusion",
        title=f"Fusion of {len(tasks)} fine-tuned models into one: test accuracy in percent",
        head="method",
        columns=(*columns, Column("settings")),
        lines=tuple(lines),
        detail="setting",
        note=over(results)
        + " References (zero-shot, fine-tuned) are no merges and get no marks. "
        + _tuned(results),
    )
    return _with_note(grid, _paper_note(results, has=grid.has_paper, table=2))


def properties_grid(methods: Sequence[MethodInfo]) -> Grid:
    """The layout of the paper's Table 1: what every method needs."""
    lines = [
        row_of(
            info,
            "",
            [
                info.summary or None,
                "no" if info.data == "nothing" else f"yes: {info.data}",
                "yes" if info.data == "unlabelled test images" else "no",
                "yes" if info.coefficient else "no",
                info.source or None,
            ],
        )
        for info in methods
        if info.group != "reference"
    ]
    names = ("what it does", "needs data?", "unlabelled test images?", "coefficient to tune?", "source")
    return Grid(
        name="properties",
        title="What every method needs besides the weights",
        head="method",
        columns=tuple(Column(name) for name in names),
        lines=tuple(lines),
    )


def forgetting_grid(results: BenchmarkResults) -> Grid:
    """The paper's Table 3: a row per method and setting, target and control on average and for every task."""
    control = results.control
    tasks = tuple(task for task in results.tasks if any(row.task == task for row in results.forgetting))
    columns = []
    for task in (paper.AVERAGE, *tasks):
        columns += [Column("target", spaced(task), "low"), Column("control", spaced(task), "high")]
    lines = []
    for info, setting in forget_runs(results):
        run = (info.key, setting)
        row = info.paper if setting == "published" else None
        cells: list[Cell] = []
        for task in (paper.AVERAGE, *tasks):
            which = None if task == paper.AVERAGE else task
            for side in _SIDES:
                published = paper.forgetting(row, task, side, tasks, control)
                cells.append(number(spread(forgotten(results, run, side, which)), published))
        chosen = [one.chosen for one in results.forgetting if (one.method, one.setting) == run]
        cells.append(_distinct(chosen))
        lines.append(row_of(info, tagged(results, run, forgetting=True), cells))
    grid = Grid(
        name="forgetting",
        title=f"Forgetting one task: test accuracy in percent on that task (target, lower is better) and on "
        f"{spaced(control)} (control, higher is better)",
        head="method",
        columns=(*columns, Column("settings")),
        lines=tuple(lines),
        detail="setting",
        note=over(results)
        + " A method can buy a lower target with a lower control: read the two together. Tuned, for every task: of the "
        f"settings that keep {kept_share(results)} of the pretrained model's accuracy on the control's validation images the one "
        "that forgets most" + _short_of_it(results) + ".",
    )
    return _with_note(grid, _paper_note(results, has=grid.has_paper, table=3))


def kept_share(results: BenchmarkResults) -> str:
    """The share of the control's accuracy that a tuned forgetting must keep, in percent."""
    share = results.record.get("settings", {}).get("control_share", 0.95)
    return f"{100 * share:g}%"


def _short_of_it(results: BenchmarkResults) -> str:
    """Which methods have a task for which no setting of the grid keeps enough."""
    short = [row for row in results.forgetting if not row.enough]
    if not short:
        return ""
    names = dict.fromkeys(results.method(row.method).label for row in short)
    return (
        f"; where no setting of the grid keeps as much, the one that keeps most ({len(short)} of the tasks and seeds of "
        + ", ".join(names)
        + ")"
    )


_SIDES: tuple[Literal["target", "control"], ...] = ("target", "control")


def _distinct(chosen: Sequence[object]) -> str | None:
    # One setting for each task and seed: a list of all of them says less than which values occur.
    found: dict[str, list[str]] = {}
    for one in chosen:
        for part in settings_text([one], scale="γ").split("; ") if one else []:  # type: ignore[list-item]
            name, _, value = part.partition(" = ")
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return "; ".join(f"{name} = {_values(values)}" for name, values in found.items()) or None


def _values(values: list[str]) -> str:
    if len(values) < 4:
        return ", ".join(values)
    try:
        ordered = sorted(values, key=float)
    except ValueError:
        return ", ".join(values)
    return f"{ordered[0]} to {ordered[-1]}"


def pair_runs(results: BenchmarkResults) -> list[tuple[str, Setting]]:
    """Every method and setting that fused pairs, in the order of the table."""
    found = dict.fromkeys((row.method, row.setting) for row in results.pairs)
    keys = [info.key for info in results.methods]
    return sorted(
        found, key=lambda run: (keys.index(run[0]) if run[0] in keys else len(keys), SETTINGS.index(run[1]))
    )


def pair_name(tasks: Sequence[str]) -> str:
    """Two tasks as they read."""
    return " + ".join(spaced(task) for task in tasks)


def pairs_grid(results: BenchmarkResults) -> Grid:
    """A row per pair of tasks, a column per method."""
    which = pair_runs(results)
    pairs = list(dict.fromkeys(row.tasks for row in results.pairs))
    found: dict[tuple[tuple[str, ...], tuple[str, Setting]], dict[int, float]] = {}
    for row in results.pairs:
        found.setdefault((row.tasks, (row.method, row.setting)), {})[row.seed] = row.average
    many = {key for key, _ in which if sum(key == other for other, _ in which) > 1}

    def heading(run: tuple[str, Setting]) -> str:
        name = label(results, run[0])
        return f"{name} ({run[1]})" if run[0] in many or run[1] == "tuned" else name

    lines = [
        Line(pair_name(pair), tuple(number(spread(found.get((pair, run), {}))) for run in which))
        for pair in pairs
    ]
    means: list[Cell] = []
    for run in which:
        by_seed: dict[int, list[float]] = {}
        for pair in pairs:
            for seed, value in found.get((pair, run), {}).items():
                by_seed.setdefault(seed, []).append(value)
        means.append(number(spread({seed: sum(values) / len(values) for seed, values in by_seed.items()})))
    lines.append(Line("mean of all pairs", tuple(means), compete=False, kind="total"))
    return Grid(
        name="pairs",
        title="Two tasks fused: average test accuracy in percent",
        head="pair",
        columns=tuple(Column(heading(run)) for run in which),
        lines=tuple(lines),
        note=over(results),
    )


def conflict_grid(results: BenchmarkResults) -> Grid:
    """Share of sign conflicts, task by task, in percent."""
    tasks = list(results.conflict)
    lines = [
        Line(
            spaced(task),
            tuple(
                Number(100 * results.conflict[task][other])
                if other != task and other in results.conflict[task]
                else None
                for other in tasks
            ),
        )
        for task in tasks
    ]
    columns = tuple(Column(spaced(task)) for task in tasks)
    return Grid("conflict", "Entries whose signs differ, in percent", "task", columns, tuple(lines))


def row_of(info: MethodInfo, tag: str, cells: Sequence[Cell]) -> Line:
    """A row of a method."""
    return Line(info.label, tuple(cells), tag, info.group != "reference", _KINDS.get(info.group, ""))


def spaced(name: str) -> str:
    """A task's name as it reads."""
    return name.replace("_", " ")


def over(results: BenchmarkResults) -> str:
    """What a number is the mean of, for a note."""
    if len(results.seeds) < 2:
        return f"One seed ({results.seeds[0]}): no spread."
    seeds = ", ".join(map(str, results.seeds))
    return f"Mean ± standard deviation over {len(results.seeds)} seeds of fine-tuning ({seeds})."


def _tuned(results: BenchmarkResults) -> str:
    if not any(row.setting == "tuned" for row in results.fusion):
        return ""
    return "Published: with published settings; tuned: with those that were best on validation images."


def _with_note(grid: Grid, note: str) -> Grid:
    return replace(grid, note=" ".join(part.strip() for part in (grid.note, note) if part.strip()))


def _paper_note(results: BenchmarkResults, *, has: bool, table: int) -> str:
    if not has:
        return (
            f"The numbers of the paper's Table {table} do not stand beside these: none of its rows was measured on the "
            "same data sets."
        )
    differs: list[str] = []
    if not paper.covers(results.tasks):
        differs.append("other tasks were fused with them here")
    if results.encoder.replace("-", "").replace("/", "").lower() not in ("vitb16", "clipvitb16"):
        differs.append(f"the encoder here is {results.encoder}")
    rest = f"; but {' and '.join(differs)}" if differs else ""
    return f"In brackets: the paper's Table {table} ({paper.encoder()}), for published settings, on the same data sets{rest}."
