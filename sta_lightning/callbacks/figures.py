"""The share of entries kept per layer, as a figure like the paper's Fig. 4 and as a table."""

from __future__ import annotations

import re
from collections.abc import Mapping

from matplotlib.figure import Figure

Kept = Mapping[str, Mapping[str, float]]

_BLOCK = re.compile(r"^(?P<before>.*?)\.(?P<block>\d+)\.(?P<kind>.+)$")
_COLUMNS = 3
_PANELS = 9


def by_kind(kept: Kept) -> dict[str, dict[str, dict[int, float]]]:
    """Sort tensors into kinds, such as ``mlp.c_fc.weight``, that every block of the encoder has one of.

    Args:
        kept: Share kept, 0 to 1, by tensor name and task.

    Returns:
        Share by kind, task and block; tensors outside of the blocks are left out.
    """
    kinds: dict[str, dict[str, dict[int, float]]] = {}
    for name, row in kept.items():
        match = _BLOCK.match(name)
        if match is None:
            continue
        for task, share in row.items():
            kinds.setdefault(match["kind"], {}).setdefault(task, {})[int(match["block"])] = share
    return kinds


def selection_figure(kept: Kept) -> Figure | None:
    """Draw the share kept over the blocks of the encoder: one panel a kind of tensor, one line a task.

    Args:
        kept: Share kept, 0 to 1, by tensor name and task.

    Returns:
        A figure that belongs to no window and to no global state; None if no tensor is in a
        numbered block.
    """
    # The paper's four kinds are weights; biases say little beside them and would need a dozen
    # panels more.
    kinds = {kind: tasks for kind, tasks in by_kind(kept).items() if kind.endswith("weight")}
    shown = dict(list(kinds.items())[:_PANELS])
    if not shown:
        return None
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for panel, (kind, tasks) in zip(panels, shown.items(), strict=False):
        for task, shares in tasks.items():
            blocks = sorted(shares)
            panel.plot(
                blocks, [100 * shares[block] for block in blocks], marker="o", markersize=3, label=task
            )
        panel.set_title(kind, fontsize=9)
        panel.grid(visible=True, alpha=0.3)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    figure.supxlabel("block")
    figure.supylabel("entries kept (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6), fontsize=8)
    return figure


def selection_table(kept: Kept) -> str:
    """Write the share kept, in percent, as a Markdown table: one row a tensor, one column a task."""
    tasks = list(dict.fromkeys(task for row in kept.values() for task in row))
    lines = [f"| tensor | {' | '.join(tasks)} |", "|---|" + "---:|" * len(tasks)]
    for name, row in kept.items():
        cells = [f"{100 * row[task]:.1f}" if task in row else "" for task in tasks]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
