"""What ``sta inspect`` shows of several models."""

from __future__ import annotations

import torch

from sta_lightning.arithmetic.comparison import Comparison, compare
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.report.comparison import grids, page, pair_grid
from sta_lightning.report.document import html
from sta_lightning.report.embed import svg
from sta_lightning.report.grid import Number


def compared(*names: str) -> Comparison:
    torch.manual_seed(0)
    base = {"layers.0.w": torch.randn(5, 4), "layers.1.w": torch.randn(4, 5), "zero": torch.zeros(3)}
    models = {name: {key: w + 0.1 * torch.randn(w.shape) for key, w in base.items()} for name in names}
    return compare(Problem(in_memory(base), {name: in_memory(model) for name, model in models.items()}))


def test_the_numbers_are_those_compared() -> None:
    found = compared("b", "a")
    models, cosine, conflict, blocks = grids(found)
    assert [line.label for line in models.lines] == ["b", "a"]
    norm, relative = models.lines[0].cells[:2]
    assert isinstance(norm, Number)
    assert isinstance(relative, Number)
    assert norm.mean == found.models["b"].norm
    assert relative.mean == 100 * (found.models["b"].relative or 0)
    assert models.lines[0].cells[-1] == "0 of 3"
    for grid, pairs in ((cosine, found.cosine), (conflict, found.conflict)):
        assert grid == pair_grid(grid.name, grid.title, pairs)
        assert grid.lines[1].cells == (Number(100 * pairs["a"]["b"]), None)
    assert [line.label for line in blocks.lines] == ["layers.0", "layers.1", "zero"]
    assert blocks.lines[2].cells == (None, None)


def test_one_model_has_no_pairs() -> None:
    assert [grid.name for grid in grids(compared("a"))] == ["models", "blocks"]


def test_the_page_shows_names_as_they_are() -> None:
    found = compared("a<b>", "c")
    document = page(found, "base & co", "can be merged", {"c": "a <doubt>"})
    drawn = {one.name: svg(one.draw(), one.name, one.alt) for one in document.pictures()}
    assert list(drawn) == ["cosine", "conflict", "blocks"]
    text = html(document, drawn)
    assert "base &amp; co and its fine-tunings" in text
    assert "a &lt;doubt&gt;" in text
    assert "a&lt;b&gt;" in text
    assert "<b>" not in text
