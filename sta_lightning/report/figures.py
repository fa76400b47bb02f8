"""The figures of a run: fusion result, accuracy against p and λ, forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from sta_lightning.report.style import GREY, colour, dash, marker, new_figure, tidy


@dataclass(frozen=True)
class MethodResult:
    """Accuracy of one method.

    Attributes:
        label: what the reader sees.
        accuracy: task name -> accuracy in percent.
        standard_error: of the average over the tasks, in points.
        reference: whether this is a bound to compare with (zero-shot, fine-tuned), not a merge.
    """

    label: str
    accuracy: Mapping[str, float]
    standard_error: float
    reference: bool = False

    @property
    def average(self) -> float:
        """Mean over the tasks, in percent."""
        return sum(self.accuracy.values()) / len(self.accuracy)


@dataclass(frozen=True)
class Curve:
    """Average accuracy in percent (``y``) against p or λ (``x``)."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    steps: bool = False
    chosen: float | None = None


def fusion_figure(results: Sequence[MethodResult], *, title: str) -> Figure:
    """Bars of the average accuracy with its sampling error, a mark for every task on top of them."""
    tasks = list(results[0].accuracy)
    figure = new_figure(9.0, 0.48 * len(results) + 2.0)
    axes = figure.add_subplot()
    for position, result in enumerate(results):
        axes.barh(
            position,
            result.average,
            xerr=result.standard_error,
            height=0.62,
            color="#D0D0D0" if result.reference else "#9CC3DE",
            ecolor="#303030",
            error_kw={"capsize": 3, "linewidth": 1.1},
        )
        axes.text(
            101.5,
            position,
            f"{result.average:.1f} ± {result.standard_error:.1f}",
            va="center",
            fontsize=10,
            fontweight="bold",
        )
    for index, task in enumerate(tasks):
        axes.plot(
            [result.accuracy[task] for result in results],
            range(len(results)),
            linestyle="none",
            marker=marker(index),
            markersize=5.5,
            color=colour(index),
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=task.replace("_", " "),
        )
    axes.set_yticks(range(len(results)), [result.label for result in results])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.text(101.5, -0.62, "average ± s.e.", va="center", fontsize=9)
    axes.set_xlabel("test accuracy (%): bar = average over the tasks, marks = tasks")
    axes.set_title(title, loc="left", fontsize=12)
    tidy(axes)
    axes.grid(False, axis="y")
    figure.legend(loc="outside lower center", ncols=min(len(tasks), 6), frameon=False, fontsize=9)
    return figure


def sweep_figure(curves: Sequence[Curve], levels: Mapping[str, float], *, title: str, y_label: str) -> Figure:
    """Accuracy of masked methods against p and of task arithmetic against λ, on one pair of axes.

    A curve with ``steps`` changes only where another order statistic is taken and is drawn as
    stairs; the chosen setting is marked by a star. ``levels`` are horizontal lines for methods
    without a setting.
    """
    figure = new_figure(9.0, 5.2)
    axes = figure.add_subplot()
    for index, curve in enumerate(curves):
        axes.plot(
            curve.x,
            curve.y,
            drawstyle="steps-post" if curve.steps else "default",
            color=colour(index),
            linestyle=dash(index),
            marker=marker(index),
            markersize=5,
            linewidth=1.8,
            label=curve.label,
        )
        if curve.chosen is not None and curve.chosen in curve.x:
            axes.plot(
                [curve.chosen],
                [curve.y[list(curve.x).index(curve.chosen)]],
                marker="*",
                markersize=16,
                color=colour(index),
                markeredgecolor="black",
                linestyle="none",
                zorder=5,
            )
    for index, (label, value) in enumerate(levels.items()):
        line = (":", "--", "-.")[index % 3]
        axes.axhline(value, color=GREY, linestyle=line, linewidth=1.3, zorder=1, label=label)
    axes.plot(
        [],
        [],
        marker="*",
        markersize=11,
        color="white",
        markeredgecolor="black",
        linestyle="none",
        label="setting used in the tables",
    )
    largest = max([1.0, *(x for curve in curves for x in curve.x)])
    axes.set_xlim(-0.03 * largest, 1.03 * largest)
    axes.set_xlabel("p (STA, random mask)   or   λ (task arithmetic), no unit")
    axes.set_ylabel(y_label)
    axes.set_title(title, loc="left", fontsize=12)
    tidy(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def forgetting_figure(
    tasks: Sequence[str],
    target: Mapping[str, Sequence[float]],
    control: Mapping[str, Sequence[float]],
    *,
    control_name: str,
    title: str,
) -> Figure:
    """Target and control accuracy after forgetting each task: two panels, a bar per method.

    Args:
        tasks: names along the x axis.
        target: method -> accuracy in percent on the forgotten task, one value per task.
        control: method -> accuracy in percent on the control set, one value per task.
        control_name: name of the control set.
        title: of the whole figure.
    """
    figure = new_figure(9.5, 6.4)
    panels = figure.subplots(2, 1, sharex=True)
    for axes, values, heading in (
        (panels[0], target, "forgotten task (lower is better)"),
        (panels[1], control, f"control: {control_name.replace('_', ' ')} (higher is better)"),
    ):
        width = 0.8 / len(values)
        for index, (method, heights) in enumerate(values.items()):
            offset = (index - (len(values) - 1) / 2) * width
            axes.bar(
                [position + offset for position in range(len(tasks))],
                heights,
                width=width * 0.92,
                color=GREY if index == 0 else colour(index - 1),
                label=method,
            )
        axes.set_ylabel("test accuracy (%)")
        axes.set_ylim(0, 100)
        axes.set_title(heading, loc="left", fontsize=10)
        tidy(axes)
        axes.grid(False, axis="x")
    panels[1].set_xticks(range(len(tasks)), [task.replace("_", " ") for task in tasks])
    panels[1].set_xlabel("task that the model is made to forget")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure
