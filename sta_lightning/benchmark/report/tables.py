"""The tables of a benchmark's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr

from sta_lightning.benchmark.report import paper
from sta_lightning.benchmark.report.numbers import (
    SIDES,
    Duel,
    Measure,
    Scores,
    kept_accuracy,
    pair_scores,
    scores,
    settings_text,
    spaced,
)
from sta_lightning.benchmark.results import BenchmarkResults, MethodInfo, Run
from sta_lightning.benchmark.statistics import standard_error
from sta_lightning.report.comparison import pair_grid
from sta_lightning.report.grid import Cell, Column, Grid, Line, Number


def fusion_grid(results: BenchmarkResults) -> Grid:
    """The paper's Table 2: a row per method and setting, the best first; the references last."""
    tasks = results.tasks
    found, shares = scores(results), kept_accuracy(results)
    by_task = {task: scores(results, "fusion", task) for task in tasks}
    chosen: dict[Run, list[Mapping[str, Any]]] = {}
    for row in sorted(results.fusion, key=lambda row: row.seed):
        chosen.setdefault(row.run, []).append(row.chosen)
    lines = []
    for run in (*found.ranked(), *found.runs("reference")):
        published = _published(found, run)
        cells: list[Cell] = [found.spread(run, paper.fusion(published, paper.AVERAGE, tasks))]
        if shares.values:
            cells.append(shares.spread(run))
        cells += [by_task[task].spread(run, paper.fusion(published, task, tasks)) for task in tasks]
        cells.append(settings_text(chosen[run]) or None)
        lines.append(_line(found, run, cells))
    columns = [Column(paper.AVERAGE, better="high")]
    columns += [Column("of fine-tuned (%)")] if shares.values else []
    columns += [Column(spaced(task), better="high") for task in tasks]
    grid = Grid(
        name="fusion",
        title=f"Fusion of {len(tasks)} fine-tuned models into one: test accuracy in percent",
        head="method",
        columns=(*columns, Column("settings")),
        lines=tuple(lines),
        detail="setting",
    )
    return _with_notes(
        results,
        grid,
        2,
        "References (zero-shot, fine-tuned) are no merges and get no marks.",
        "Published: with published settings; tuned: with those that were best on validation images."
        if any(setting == "tuned" for _, setting in found.values)
        else "",
        "Controls keep as many entries as STA, the random mask by chance: what STA gains over them is what "
        "its importance is worth."
        if found.runs("control")
        else "",
        _sampling_note(results),
    )


def forgetting_grid(results: BenchmarkResults) -> Grid:
    """The paper's Table 3: target and control on average and by task, the lowest target first."""
    control = results.control
    tasks = tuple(task for task in results.tasks if any(row.task == task for row in results.forgetting))
    columns, measured = [], []
    for task in (None, *tasks):
        name = task or paper.AVERAGE
        columns += [Column("target", spaced(name), "low"), Column("control", spaced(name), "high")]
        measured += [(name, side, scores(results, side, task)) for side in SIDES]
    found = scores(results, "target")
    lines = []
    for run in (*found.ranked(low=True), *found.runs("reference")):
        cells: list[Cell] = [
            one.spread(run, paper.forgetting(_published(found, run), name, side, tasks, control))
            for name, side, one in measured
        ]
        chosen = [row.chosen for row in results.forgetting if row.run == run]
        lines.append(_line(found, run, [*cells, _distinct(chosen)]))
    grid = Grid(
        name="forgetting",
        title="Forgetting one task: test accuracy in percent on that task (target, lower is better) and "
        f"on {spaced(control)} (control, higher is better)",
        head="method",
        columns=(*columns, Column("settings")),
        lines=tuple(lines),
        detail="setting",
    )
    return _with_notes(
        results,
        grid,
        3,
        "A method can buy a lower target with a lower control: read the two together. Tuned, for every "
        f"task: of the settings that keep {kept_share(results)} of the pretrained model's accuracy on "
        f"the control's validation images the one that forgets most{_short_of_it(results)}.",
    )


def pairs_grid(results: BenchmarkResults) -> Grid:
    """A row per pair of tasks, a column per method."""
    total = pair_scores(results)
    lines = []
    for pair in dict.fromkeys(row.tasks for row in results.pairs):
        found = pair_scores(results, pair)
        lines.append(Line(pair_name(pair), tuple(map(found.spread, total.values))))
    means = tuple(map(total.spread, total.values))
    lines.append(Line("mean of all pairs", means, compete=False, kind="total"))
    return Grid(
        name="pairs",
        title="Two tasks fused: average test accuracy in percent",
        head="pair",
        columns=tuple(Column(total.named(run)) for run in total.values),
        lines=tuple(lines),
        note=over(results),
    )


def properties_grid(
    methods: Sequence[MethodInfo], measured: Mapping[str, Mapping[str, Number]], note: str = ""
) -> Grid:
    """The paper's Table 1, whether labels are needed, and what was measured of a merge.

    ``measured``: what -> the method's key -> the number; ``note`` tells of it.
    """
    lines = []
    for info in methods:
        if info.group == "reference":
            continue
        answers = (
            info.forgets,
            info.fuses,
            info.coefficient,
            info.data == "unlabelled test images",
            info.data == "labelled samples",
        )
        cells: list[Cell] = ["yes" if answer else "no" for answer in answers]
        cells += [
            *(numbers.get(info.key) for numbers in measured.values()),
            info.data,
            info.summary or None,
            info.source or None,
        ]
        lines.append(Line(info.label, tuple(cells), kind="sta" if info.group == "sta" else ""))
    names = (
        "forgetting",
        "fusion",
        "coefficient",
        "test data",
        "labels",
        *measured,
        "reads besides weights",
    )
    return Grid(
        name="properties",
        title="What every method does and needs (the paper's Table 1)",
        head="method",
        columns=tuple(map(Column, (*names, "what it does", "source"))),
        lines=tuple(lines),
        note="Whether it makes a model forget, fuses models, depends on a coefficient that is tuned, relies on test "
        f"data, and needs labels.{note}",
    )


def merges_grid(methods: Sequence[MethodInfo], results: BenchmarkResults) -> Grid:
    """:func:`properties_grid` with the time and the norm of a benchmark's merges."""
    return properties_grid(
        methods,
        {what: _of_merges(results, what) for what in ("seconds", "norm", "divergence", "agreement")},
        " Seconds: one merge, its files read, importance not included; norm: the merged task vector's, beside that of the sum "
        f"of the task vectors; {_foretelling(results)}",
    )


def _foretelling(results: BenchmarkResults) -> str:
    """How well divergence and agreement foretell test accuracy: the mean over the seeds."""
    text = "divergence (nats) and agreement: with the fine-tuned models, on unlabelled training images."
    parts = []
    for what in ("divergence", "agreement"):
        found = []
        for seed in results.seeds:
            own = [row for row in results.fusion if row.seed == seed and getattr(row, what) is not None]
            pair = [getattr(row, what) for row in own], [row.average for row in own]
            if all(len(set(values)) > 1 for values in pair):
                found.append(spearmanr(*pair).statistic)
        if found:
            parts.append(f"{fmean(found):.2f} for {what}")
    if not parts:
        return text
    return f"{text} Their Spearman correlation with the average test accuracy over all rows of a seed: {', '.join(parts)}."


def _of_merges(results: BenchmarkResults, what: str) -> dict[str, Number]:
    """The mean of a number of the merges, as published, by the method's key."""
    found: dict[str, list[float]] = {}
    for row in results.fusion:
        if row.setting == "published" and getattr(row, what) is not None:
            found.setdefault(row.method, []).append(getattr(row, what))
    return {key: Number(fmean(values), digits=2) for key, values in found.items()}


def conflict_grid(results: BenchmarkResults) -> Grid:
    """Share of sign conflicts, task by task, in percent."""
    pairs = {
        spaced(task): {spaced(other): share for other, share in shares.items()}
        for task, shares in results.conflict.items()
    }
    return pair_grid("conflict", "Entries whose signs differ, in percent", pairs)


def duel_grid(results: BenchmarkResults, measures: Mapping[Measure, Sequence[Duel]], title: str) -> Grid:
    """A row per other method and setting, a column per variant of STA and measure."""
    found = scores(results, next(iter(measures)))
    met = {
        (name, duel.own, duel.other): duel.verdict.cell for name, duels in measures.items() for duel in duels
    }
    places = [(name, run) for run in found.runs("sta") for name in measures]
    lines = []
    for other in found.runs():
        cells = [met.get((name, run, other)) for name, run in places]
        if any(cells):
            lines.append(_line(found, other, cells))
    return Grid(
        name="",
        title=title,
        head="against",
        columns=tuple(
            Column(found.named(run)) if name == "fusion" else Column(name, found.named(run))
            for name, run in places
        ),
        lines=tuple(lines),
        note="A positive number: STA's is the higher one. "
        + (
            "After ± stands the standard error over the seeds, then what STA does against the other."
            if len(results.seeds) > 1
            else "One seed: no spread."
            + (" After ± stands the standard error on the same test images." if results.paired else "")
        ),
    )


def duels_csv(results: BenchmarkResults, measures: Mapping[Measure, Sequence[Duel]]) -> Grid:
    """Every duel, a row each."""
    lines = []
    for measure, duels in measures.items():
        infos = scores(results, measure).infos
        for duel in duels:
            verdict = duel.verdict
            difference = Number(verdict.difference.mean)
            error = None if verdict.known_error is None else Number(verdict.known_error)
            who = (infos[duel.own[0]].label, duel.own[1], infos[duel.other[0]].label, duel.other[1])
            cells = (*who, difference, error, str(len(verdict.differences)), verdict.outcome)
            lines.append(Line(measure, cells))
    names = [
        "method",
        "setting",
        "against",
        "its setting",
        "difference",
        "standard error",
        "seeds",
        "outcome",
    ]
    return Grid("verdicts", "Verdicts", "measure", tuple(map(Column, names)), tuple(lines))


def pair_name(tasks: Sequence[str]) -> str:
    """Two tasks as they read."""
    return " + ".join(map(spaced, tasks))


def kept_share(results: BenchmarkResults) -> str:
    """The share of the control's accuracy that a tuned forgetting must keep, in percent."""
    share = results.record.get("settings", {}).get("control_share", 0.95)
    return f"{100 * share:g}%"


def over(results: BenchmarkResults) -> str:
    """What a number is the mean of, for a note."""
    if len(results.seeds) < 2:
        return f"One seed ({results.seeds[0]}): no spread."
    seeds = ", ".join(map(str, results.seeds))
    return f"Mean ± standard deviation over {len(results.seeds)} seeds of fine-tuning ({seeds})."


def _line(found: Scores, run: Run, cells: Sequence[Cell]) -> Line:
    group = found.group(run)
    kind = group if group in ("reference", "sta") else ""
    return Line(found.infos[run[0]].label, tuple(cells), found.tag(run), group != "reference", kind)


def _published(found: Scores, run: Run) -> str | None:
    """The paper's row, to stand beside published settings."""
    return found.infos[run[0]].paper if run[1] == "published" else None


def _distinct(chosen: Sequence[Mapping[str, Any]]) -> str | None:
    # One setting for each task and seed: a list of all of them says less than which values occur.
    found: dict[str, list[str]] = {}
    for settings in chosen:
        for part in settings_text([settings], scale="γ").split("; ") if settings else []:
            name, _, value = part.partition(" = ")
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return "; ".join(f"{name} = {_values(values)}" for name, values in found.items()) or None


def _values(values: list[str]) -> str:
    if len(values) > 3:
        try:
            ordered = sorted(values, key=float)
            return f"{ordered[0]} to {ordered[-1]}"
        except ValueError:
            pass
    return ", ".join(values)


def _short_of_it(results: BenchmarkResults) -> str:
    """Which methods have a task for which no setting of the grid keeps enough."""
    short = [row for row in results.forgetting if not row.enough]
    if not short:
        return ""
    names = dict.fromkeys(results.method(row.method).label for row in short)
    return (
        "; where no setting of the grid keeps as much, the one that keeps most "
        f"({len(short)} of the tasks and seeds of {', '.join(names)})"
    )


def _sampling_note(results: BenchmarkResults) -> str:
    """Of one seed, how far the number of test images lets an average lie off."""
    images = results.images.get("test", {})
    if len(results.seeds) > 1 or not images:
        return ""
    references = {info.key for info in results.methods if info.group == "reference"}
    rows = [row for row in results.fusion if row.method not in references]
    largest = max(standard_error(row.accuracy, images) for row in rows)
    counts = ", ".join(f"{spaced(task)} {images[task]}" for task in results.tasks)
    if len({images[task] for task in results.tasks}) == 1:
        counts = f"{images[results.tasks[0]]} per task"
    return f"Standard error of an average from the test images ({counts}): at most {largest:.1f} points."


def _with_notes(results: BenchmarkResults, grid: Grid, table: int, *notes: str) -> Grid:
    shown = (over(results), *notes, _paper_note(results, grid.has_paper, table))
    return replace(grid, note=" ".join(filter(None, shown)))


def _paper_note(results: BenchmarkResults, has_paper: bool, table: int) -> str:
    if not has_paper:
        return (
            f"The numbers of the paper's Table {table} do not stand beside these: none of its rows was "
            "measured on the same data sets."
        )
    differs: list[str] = []
    if not paper.covers(results.tasks):
        differs.append("other tasks were fused with them here")
    if results.encoder.replace("-", "").replace("/", "").lower() not in ("vitb16", "clipvitb16"):
        differs.append(f"the encoder here is {results.encoder}")
    return (
        f"In brackets: the paper's Table {table} ({paper.encoder()}), for published settings, on the same "
        f"data sets{'; but ' if differs else ''}{' and '.join(differs)}."
    )
