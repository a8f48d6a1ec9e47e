"""Draws what networks reach when they are cut to a rank after training: scores, and of texts their losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cl_runner.reports.collect import Group
from cl_runner.reports.drawing import look_of, new_axes, save, style
from cl_runner.reports.losses import Panel, measure_of_groups, rank_panels, said
from cl_runner.reports.points import Curve, Measured, rank_lines
from cl_runner.reports.run_figures import distinct

_MOST_COLUMNS = 4


def rank_curves(groups: Sequence[Group], path: Path) -> list[str]:
    """Draws the accuracy in %, mean over the tasks, over the rank at which a trained network was evaluated.

    A line a group; its band is the sample standard deviation over the seeds. Arguments, result and errors as in
    :func:`cl_runner.reports.figures.pareto`; groups with a run without `rank_curve.csv` are left out.
    """
    curved = [group for group in groups if all((run.folder / "rank_curve.csv").is_file() for run in group.runs)]
    lines = rank_lines(curved or groups)
    with style():
        label = said("accuracy, mean over the tasks (%)", measure_of_groups(curved))
        figure, axes = new_axes("rank at evaluation", label)
        _draw(axes, lines, [line.label for line in lines])
        _rank_axis(axes, lines)
        axes.legend(loc="best")
        save(figure, path)
    left = len(groups) - len(curved)
    return [f"{left} of {len(groups)} rows have no rank_curve.csv and are left out"] if left else []


def rank_loss(groups: Sequence[Group], path: Path) -> list[str]:
    """Draws the loss in nats a token over the rank at which a network was evaluated: lower is better.

    A panel a task and, where networks were cut after several tasks, a row a stage; a line a group with the sample
    standard deviation over the seeds as its band. Panels of one task share their axis. Arguments, result and errors as
    in :func:`cl_runner.reports.figures.pareto`; groups without such losses are left out.
    """
    panels, left_out = rank_panels(groups)
    stages = list(dict.fromkeys(panel.after_task for panel in panels))
    tasks = list(dict.fromkeys(panel.task for panel in panels))
    columns = len(tasks) if len(stages) > 1 else min(len(tasks), _MOST_COLUMNS)
    rows = len(stages) if len(stages) > 1 else -(-len(tasks) // columns)
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    with style():
        figure, empty = new_axes("", "", size=(1.2 + 3.6 * columns, 1.0 + 2.9 * rows))
        empty.remove()
        first: dict[int, Any] = {}
        for number, panel in enumerate(panels):
            place = number
            if len(stages) > 1:
                place = stages.index(panel.after_task) * columns + tasks.index(panel.task)
            axes = figure.add_subplot(rows, columns, place + 1, sharey=first.get(panel.task))
            first.setdefault(panel.task, axes)
            _panel(axes, panel, labels)
            axes.set_xlabel("rank at evaluation" if place // columns == rows - 1 else "")
            axes.set_ylabel("loss (nats a token)" if place % columns == 0 else "")
        lines = {
            label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        names = dict(zip(labels, distinct(labels), strict=True))
        shown = [label for label in labels if label in lines]
        if len(shown) > 1:
            handles = [lines[label] for label in shown]
            figure.legend(handles, [names[label] for label in shown], loc="outside lower center", ncols=2, fontsize=8)
        save(figure, path)
    return left_out


def _panel(axes: Any, panel: Panel, labels: Sequence[str]) -> None:
    """One task after one stage; a group looks the same in all panels."""
    axes.set_title(f"{panel.name}, after task {panel.after_task}", fontsize=10)
    _draw(axes, panel.curves, labels)
    _rank_axis(axes, panel.curves)


def _draw(axes: Any, lines: Sequence[Curve], labels: Sequence[str]) -> None:
    """Means with a band; the look of a line is that of its label's first place, or its own where labels are alike."""
    alike = len(set(labels)) < len(labels)
    for number, line in enumerate(lines):
        colour, marker = look_of(number if alike else labels.index(line.label))
        means = [value.mean for value in line.values]
        axes.plot(line.ranks, means, color=colour, marker=marker, label=line.label)
        if all(value.std is not None for value in line.values):
            low, high = zip(*(_span(value) for value in line.values), strict=True)
            axes.fill_between(line.ranks, low, high, color=colour, alpha=0.2, linewidth=0)


def _rank_axis(axes: Any, lines: Sequence[Curve]) -> None:
    """Ranks double from tick to tick."""
    ranks = sorted({rank for line in lines for rank in line.ranks})
    if ranks[0] > 0:
        axes.set_xscale("log", base=2)
    else:  # rank 0 is the network without its adapter, and has no logarithm
        axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(ranks, [f"{rank:g}" for rank in ranks])
    axes.minorticks_off()


def _span(value: Measured) -> tuple[float, float]:
    return value.mean - (value.std or 0), value.mean + (value.std or 0)
