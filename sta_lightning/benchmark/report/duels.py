"""The tables of who beats whom."""

from __future__ import annotations

from collections.abc import Sequence

from sta_lightning.benchmark.report.numbers import Duel, forget_runs, label, named, runs, tagged
from sta_lightning.benchmark.report.tables import row_of
from sta_lightning.benchmark.results import BenchmarkResults
from sta_lightning.report.grid import Column, Grid, Line, Number


def duel_grid(
    results: BenchmarkResults,
    found: Sequence[tuple[str, Sequence[Duel]]],
    title: str,
    *,
    forgetting: bool = False,
) -> Grid:
    """A row per other method and setting, a column per variant of STA and measure.

    Args:
        results: what was found.
        found: measure (may be empty) and its duels.
        title: of the table.
        forgetting: whose methods these are.
    """
    own = list(dict.fromkeys(duel.own for _, duels in found for duel in duels))
    met = {duel.other for _, duels in found for duel in duels}
    table = forget_runs(results) if forgetting else runs(results)
    others = [(info.key, setting) for info, setting in table if (info.key, setting) in met]
    cells = {(measure, duel.own, duel.other): duel.verdict.cell for measure, duels in found for duel in duels}
    columns = tuple(
        Column(measure or named(results, run), named(results, run, forgetting=forgetting) if measure else "")
        for run in own
        for measure, _ in found
    )
    infos = {info.key: info for info in (results.forget_methods if forgetting else results.methods)}
    lines = [
        row_of(
            infos[other[0]],
            tagged(results, other, forgetting=forgetting),
            [cells.get((measure, run, other)) for run in own for measure, _ in found],
        )
        for other in others
    ]
    return Grid(
        name="",
        title=title,
        head="against",
        columns=columns,
        lines=tuple(lines),
        note="A positive number: STA's is the higher one. "
        + (
            "After ± stands the standard error over the seeds, then what STA does against the other."
            if len(results.seeds) > 1
            else "One seed: no spread."
        ),
    )


def duels_csv(results: BenchmarkResults, found: Sequence[tuple[str, Sequence[Duel]]]) -> Grid:
    """Every duel, a row each."""
    lines = []
    for measure, duels in found:
        forgetting = measure != "fusion"
        for duel in duels:
            verdict = duel.verdict
            lines.append(
                Line(
                    measure,
                    (
                        label(results, duel.own[0], forgetting=forgetting),
                        duel.own[1],
                        label(results, duel.other[0], forgetting=forgetting),
                        duel.other[1],
                        Number(verdict.difference.mean),
                        None if verdict.error is None else Number(verdict.error),
                        str(verdict.difference.n),
                        verdict.outcome,
                    ),
                )
            )
    names = (
        "method",
        "setting",
        "against",
        "its setting",
        "difference",
        "standard error",
        "seeds",
        "outcome",
    )
    return Grid("verdicts", "Verdicts", "measure", tuple(Column(name) for name in names), tuple(lines))
