"""Models beside the pretrained one: tables for a terminal, and a page that draws them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from sta_lightning.report.grid import Column, Grid, Line, Number

if TYPE_CHECKING:  # torch and matplotlib take seconds, and a terminal shows no figure
    from sta_lightning.arithmetic.comparison import Comparison
    from sta_lightning.report.document import Document

_RANK = (
    "The effective rank of a matrix's task vector is the participation ratio of its squared singular values, "
    "(sum of s²)² / sum of s⁴; it and the cosine with the base are medians over the matrices."
)


def pair_grid(name: str, title: str, pairs: Mapping[str, Mapping[str, float]]) -> Grid:
    """A share of every two, in percent, under the name of a file and a caption."""
    lines = []
    for one, row in pairs.items():
        percent = [None if other == one else row.get(other) for other in pairs]
        lines.append(Line(one, tuple(None if share is None else Number(100 * share) for share in percent)))
    return Grid(name, title, "task", tuple(map(Column, pairs)), tuple(lines))


def grids(found: Comparison) -> Iterator[Grid]:
    """The tables: every model, every two models, every block."""
    columns = (
        "norm",
        "% of the base's norm",
        "% of entries differ",
        "cosine with the base",
        "effective rank",
    )
    lines = []
    for name, model in found.models.items():
        cells = (
            Number(model.norm, digits=4),
            _percent(model.relative),
            Number(100 * model.changed),
            None if model.cosine is None else Number(model.cosine, digits=4),
            None if model.rank is None else Number(model.rank),
            f"{len(model.equal)} of {found.tensors}",
        )
        lines.append(Line(name, cells))
    heads = tuple(map(Column, (*columns, "tensors equal to the base's")))
    yield Grid("models", "Task vectors", "task", heads, tuple(lines), note=_RANK)
    if len(found.models) > 1:
        yield pair_grid("cosine", "Cosine of two task vectors, in percent", found.cosine)
        title = "Entries of two task vectors whose signs differ, in percent"
        yield pair_grid("conflict", title, found.conflict)
    blocks = dict.fromkeys(block for model in found.models.values() for block in model.blocks)
    rows = tuple(
        Line(block, tuple(_percent(model.blocks[block]["relative"]) for model in found.models.values()))
        for block in blocks
    )
    title = "Norm of the task vector, in percent of the base's, block by block"
    yield Grid("blocks", title, "block", tuple(map(Column, found.models)), rows)


def _percent(share: float | None) -> Number | None:
    return None if share is None else Number(100 * share, digits=3)


def page(found: Comparison, base: str, verdict: str, doubts: Mapping[str, str]) -> Document:
    """The comparison as a document.

    Args:
        found: the models that can be merged.
        base: what to call the pretrained model.
        verdict: what comes of it, in a sentence.
        doubts: models that do not belong, and why.
    """
    from sta_lightning.report.document import Block, Document, Item, Picture, Section
    from sta_lightning.report.heat import grid_figure

    sections = []
    if doubts:
        items = tuple(Item(why, f"{name}:") for name, why in doubts.items())
        sections.append(Section("doubts", "What does not belong", (items,)))
    for grid in grids(found) if found.models else ():
        blocks: tuple[Block, ...] = (grid,)
        if grid.name != "models" and any(any(line.cells) for line in grid.lines):
            said = "The numbers stand in the table."
            blocks = (Picture(grid.name, grid.title, said, grid.title, partial(grid_figure, grid)), grid)
        sections.append(Section(grid.name, grid.title, blocks))
    return Document(f"{base} and its fine-tunings", "sta inspect", verdict, tuple(sections))
