"""Share of entries that each task keeps, by layer and kind of parameter (the paper's Fig. 4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure

from sta_lightning.report.grid import Column, Grid, Line, Number, csv_text
from sta_lightning.report.style import LIGHT, legend_below, new_figure, paint, tell, tidy

# A block's number is the first number that stands alone between dots:
# "transformer.resblocks.7.ln_1.weight", "blocks.7.norm1.weight".
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.(.+)$")
_MOST_PANELS = 9

# The paper's kinds of parameter, in the order of its figure: open_clip's name, timm's name.
_MAIN_KINDS = (
    ("ln_1.weight", "norm1.weight"),
    ("ln_2.weight", "norm2.weight"),
    ("mlp.c_fc.weight", "mlp.fc1.weight"),
    ("mlp.c_proj.weight", "mlp.fc2.weight"),
)
_MEANING = {
    **dict.fromkeys(_MAIN_KINDS[0], "norm before attention"),
    **dict.fromkeys(_MAIN_KINDS[1], "norm before MLP"),
}


@dataclass(frozen=True)
class Selection:
    """What one merge kept: tensor -> task -> entries kept / entries, in [0, 1]."""

    kept: Mapping[str, Mapping[str, float]]

    @property
    def tasks(self) -> list[str]:
        """Task names in the order of the record."""
        return list(dict.fromkeys(task for row in self.kept.values() for task in row))

    def by_kind(self) -> dict[str, dict[str, list[tuple[int | None, float]]]]:
        """Kind of parameter -> task -> (layer, share kept); layer ``None`` outside the blocks."""
        kinds: dict[str, dict[str, list[tuple[int | None, float]]]] = {}
        for tensor, row in self.kept.items():
            layer, kind = split_name(tensor)
            for task, share in row.items():
                kinds.setdefault(kind, {}).setdefault(task, []).append((layer, share))
        return kinds

    def main_kinds(self) -> list[str]:
        """The kinds within blocks that the figure shows: well-known ones, or else nine weights."""
        present = list(dict.fromkeys(kind for layer, kind in map(split_name, self.kept) if layer is not None))
        known = [name for names in _MAIN_KINDS for name in names if name in present]
        if _MEANING.keys() & known:
            return known
        # Of linear layers alone, as Gram matrices are, none is left out; biases say little beside
        # the weights and would need a dozen panels more.
        return [kind for kind in present if kind.endswith("weight")][:_MOST_PANELS]

    def curve(self, kind: str, task: str) -> list[tuple[int, float]]:
        """``(layer, share kept)`` of one kind and task, in the order of the layers."""
        shares = self.by_kind()[kind].get(task, [])
        return sorted((layer, share) for layer, share in shares if layer is not None)

    def grid(self) -> Grid:
        """A row per tensor, a column per task, in percent."""
        tasks = self.tasks
        lines = [
            Line(tensor, tuple(Number(100 * row[task]) if task in row else None for task in tasks))
            for tensor, row in self.kept.items()
        ]
        return Grid("", "Entries kept, in percent", "tensor", tuple(map(Column, tasks)), tuple(lines))

    def csv(self) -> str:
        """One line for each tensor and task; the share is in [0, 1]."""
        rows: list[tuple[str | int | None, ...]] = [("tensor", "layer", "kind", "task", "share_kept")]
        for tensor, row in self.kept.items():
            rows += [(tensor, *split_name(tensor), task, f"{share:.6f}") for task, share in row.items()]
        return csv_text(rows)


def split_name(tensor: str) -> tuple[int | None, str]:
    """Block number and name within it: ``blocks.7.norm1.weight`` -> ``(7, "norm1.weight")``."""
    match = _BLOCK.search(tensor)
    return (int(match.group(1)), match.group(2)) if match else (None, tensor)


def selection_figure(selection: Selection, *, title: str, what: str = "entries kept (%)") -> Figure:
    """Share of entries kept per layer, a curve per task, a panel per main kind of parameter.

    Another number of tensor and task, ``what``, is drawn likewise, in percent.
    """
    shown = selection.main_kinds()
    columns = 2 if len(shown) <= 4 else 3
    rows = -(-len(shown) // columns)
    figure = new_figure(3.7 * columns, 2.6 * rows + 0.9, title)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for number, axes in enumerate(panels.flat):
        if number >= len(shown):
            axes.set_visible(False)
            continue
        kind = shown[number]
        for look, task in enumerate(selection.tasks):
            points = selection.curve(kind, task)
            (line,) = axes.plot(
                [layer for layer, _ in points],
                [100 * share for _, share in points],
                **LIGHT.line(look),
                markersize=4,
                linewidth=1.4,
                label=task.replace("_", " "),
            )
            tell(line, [f"{kind}, layer {layer}, {task}: {100 * share:.1f}%" for layer, share in points])
        axes.set_title(f"{kind} ({_MEANING[kind]})" if kind in _MEANING else kind, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelbottom=number + columns >= len(shown))
        tidy(axes)
        if number % columns == 0:
            axes.set_ylabel(what)
        if number + columns >= len(shown):
            axes.set_xlabel("layer (0 is next to the image)")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    legend_below(figure, dict(zip(labels, handles, strict=True)))
    return paint(figure)
