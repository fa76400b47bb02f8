"""A step runner that computes nothing, to tell which cells are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from typing_extensions import override

from sta_lightning.benchmark.cells import Cell
from sta_lightning.benchmark.context import Context
from sta_lightning.benchmark.kinds import compute
from sta_lightning.experiment.steps import Json, Step, StepRunner


class UnfinishedError(Exception):
    """A step is not done."""


class Rehearsal(StepRunner):
    """Finds the steps that are done, and stops at the first that is not."""

    @override
    def run(
        self,
        name: str,
        settings: Mapping[str, Json],
        work: Callable[[Path], Mapping[str, Json]],
        inputs: Mapping[str, Path] | None = None,
        source: Iterable[str] = (),
    ) -> Step:
        """The step, if it is done.

        Raises:
            UnfinishedError: if it is not.
        """
        done = self.find(name, settings, inputs or {}, source)
        if done is None:
            raise UnfinishedError(name)
        return done


def unfinished(context: Context, cells: Sequence[Cell]) -> list[Cell]:
    """The cells that are not whole yet, told without computing anything.

    Args:
        context: whose step runners are a :class:`Rehearsal`.
        cells: of the plan, each after those that it needs.
    """
    waiting: list[Cell] = []
    ids: set[str] = set()
    for cell in cells:
        if not ids.intersection(cell.needs):
            try:
                compute(context, cell)
                continue
            except UnfinishedError:
                pass
        waiting.append(cell)
        ids.add(cell.id)
    return waiting
