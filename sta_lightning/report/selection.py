"""Share of entries that each task keeps, by layer and kind of parameter (the paper's Fig. 4)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from sta_lightning.report.grid import Column, Grid, Line, Number, csv_text
from sta_lightning.report.style import legend_below, new_figure, paint, tidy
from sta_lightning.report.theme import LIGHT, Theme

# A block's number is the first number that stands alone between dots:
# "transformer.resblocks.7.ln_1.weight", "blocks.7.norm1.weight".
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.(.+)$")
_MOST_PANELS = 9

# Kinds of parameter in the order of the figure: open_clip's name, timm's name. The first four are
# the paper's.
_MAIN_KINDS = (
    ("ln_1.weight", "norm1.weight"),
    ("ln_2.weight", "norm2.weight"),
    ("mlp.c_fc.weight", "mlp.fc1.weight"),
    ("mlp.c_proj.weight", "mlp.fc2.weight"),
    ("attn.in_proj_weight", "attn.qkv.weight"),
    ("attn.out_proj.weight", "attn.proj.weight"),
)
_MEANING = {
    **dict.fromkeys(_MAIN_KINDS[0], "norm before attention"),
    **dict.fromkeys(_MAIN_KINDS[1], "norm before MLP"),
}


@dataclass(frozen=True)
class KeptShare:
    """Share of one tensor's entries that one task keeps.

    Attributes:
        tensor: full name in the encoder.
        layer: number of the transformer block; ``None`` for a tensor outside the blocks.
        kind: name within the block, or the full name outside the blocks.
        task: name of the task.
        share: entries kept / entries, in [0, 1].
    """

    tensor: str
    layer: int | None
    kind: str
    task: str
    share: float


@dataclass(frozen=True)
class Selection:
    """Every kept share of one merge."""

    shares: tuple[KeptShare, ...]

    @classmethod
    def from_kept(cls, kept: Mapping[str, Mapping[str, float]]) -> Selection:
        """Read the record of a merge: tensor name -> task -> share of entries kept."""
        shares = []
        for tensor, by_task in kept.items():
            layer, kind = split_name(tensor)
            shares += [KeptShare(tensor, layer, kind, task, float(share)) for task, share in by_task.items()]
        return cls(tuple(shares))

    @property
    def tasks(self) -> list[str]:
        """Task names in the order of the record."""
        return list(dict.fromkeys(share.task for share in self.shares))

    @property
    def kinds(self) -> list[str]:
        """Kinds of parameter within the blocks."""
        return list(dict.fromkeys(share.kind for share in self.shares if share.layer is not None))

    def main_kinds(self) -> list[str]:
        """The kinds that the figure shows: the well-known ones, or else weights, nine at most."""
        present = self.kinds
        known = [name for names in _MAIN_KINDS for name in names if name in present]
        # Biases say little beside the weights and would need a dozen panels more.
        return known or [kind for kind in present if kind.endswith("weight")][:_MOST_PANELS]

    def curve(self, kind: str, task: str) -> list[tuple[int, float]]:
        """``(layer, share kept)`` of one kind and task, in the order of the layers."""
        return sorted(
            (share.layer, share.share)
            for share in self.shares
            if share.kind == kind and share.task == task and share.layer is not None
        )

    def grid(self) -> Grid:
        """A row per tensor, a column per task, in percent."""
        tasks = self.tasks
        found: dict[str, dict[str, float]] = {}
        for share in self.shares:
            found.setdefault(share.tensor, {})[share.task] = share.share
        return Grid(
            name="",
            title="Entries kept, in percent",
            head="tensor",
            columns=tuple(Column(task) for task in tasks),
            lines=tuple(
                Line(tensor, tuple(Number(100 * row[task]) if task in row else None for task in tasks))
                for tensor, row in found.items()
            ),
        )

    def csv(self) -> str:
        """One line for each tensor and task; the share is in [0, 1]."""
        return csv_text(
            [
                ("tensor", "layer", "kind", "task", "share_kept"),
                *((one.tensor, one.layer, one.kind, one.task, f"{one.share:.6f}") for one in self.shares),
            ]
        )


def split_name(tensor: str) -> tuple[int | None, str]:
    """Block number and name within it: ``blocks.7.norm1.weight`` -> ``(7, "norm1.weight")``."""
    match = _BLOCK.search(tensor)
    return (int(match.group(1)), match.group(2)) if match else (None, tensor)


def selection_figure(
    selection: Selection, *, title: str, kinds: Sequence[str] | None = None, theme: Theme = LIGHT
) -> Figure:
    """Share of entries kept per layer, a curve per task, a panel per kind of parameter (Fig. 4).

    Args:
        selection: what was kept; it has kinds to show.
        title: of the whole figure.
        kinds: which kinds of parameter get a panel; the default is ``selection.main_kinds()``.
        theme: of the figure.
    """
    shown = list(kinds) if kinds is not None else selection.main_kinds()
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
            axes.plot(
                [layer for layer, _ in points],
                [100 * share for _, share in points],
                **theme.line(look),
                markersize=4,
                linewidth=1.4,
                label=task.replace("_", " "),
            )
        axes.set_title(f"{kind} ({_MEANING[kind]})" if kind in _MEANING else kind, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelbottom=number + columns >= len(shown))
        tidy(axes, theme)
        if number % columns == 0:
            axes.set_ylabel("entries kept (%)")
        if number + columns >= len(shown):
            axes.set_xlabel("layer (0 is next to the image)")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    legend_below(figure, dict(zip(labels, handles, strict=True)))
    return paint(figure, theme)
