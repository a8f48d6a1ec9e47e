"""Draws comparisons of runs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cl_runner.reports.collect import Group
from cl_runner.reports.drawing import COLOURS, look_of, new_axes, save, style
from cl_runner.reports.losses import measure_of_groups, said
from cl_runner.reports.points import Point, front, pareto_points, probe_points
from cl_runner.reports.rank_figures import rank_curves, rank_loss
from cl_runner.reports.retention import retention_points

_MOST_LABELS = 6  # more of them cover each other; they become numbers with a key
_AROUND = [  # where a label may stand, in points from its own: beside the error bars first, then on and beyond them
    (x * reach, y * reach)
    for reach in (1.0, 2.0, 3.0)
    for x, y in ((7, 6), (-7, 6), (7, -6), (-7, -6), (9, 0), (-9, 0), (0, 9), (0, -9))
]
_BARS: dict[str, Any] = {"markersize": 7, "elinewidth": 1, "capsize": 2.5, "markeredgecolor": "white"}


def pareto(groups: Sequence[Group], path: Path) -> list[str]:
    """Draws ACC in % over parameter growth in %, a labelled point a group, and the front that no point beats.

    Bars are the sample standard deviation over the seeds.

    Args:
        groups: what to compare.
        path: a .png, .svg or .pdf; its folder is made.

    Returns:
        A sentence for each group that is left out.

    Raises:
        RequestError: there is nothing to draw, or the file cannot be written.
    """
    points, left_out = pareto_points(groups)
    points.sort(key=lambda point: (point.x.mean, point.y.mean))
    best = front(points)
    with style():
        figure, axes = new_axes("parameter growth (%)", "ACC, mean over the tasks at the end (%)")
        edge = {"color": COLOURS[0], "linewidth": 1.2, "zorder": 1, "label": "Pareto front"}
        axes.plot([one.x.mean for one in best], [one.y.mean for one in best], drawstyle="steps-post", **edge)
        for point in points:
            colour = COLOURS[0] if point in best else "#777777"
            _bar(axes, point, color=colour, fmt="o", zorder=3)
        axes.margins(x=0.12, y=0.12)
        axes.legend(loc="lower right")
        labels = [textwrap.fill(point.label, 32) for point in points]
        if len(points) > _MOST_LABELS:
            _key(figure, points)
            labels = [str(number) for number in range(1, len(points) + 1)]
        _annotate(figure, axes, points, labels, ["#333333"] * len(points))
        save(figure, path)
    return left_out


def probe(groups: Sequence[Group], path: Path) -> list[str]:
    """Draws the accuracy kept on old tasks over that reached on new ones, in %; the number at a point is its rank.

    A colour and marker a placement, joined in the order of rank; bars are the sample standard deviation over the seeds.
    Arguments, result and errors as in :func:`pareto`.
    """
    points, left_out = probe_points(groups)
    measure = measure_of_groups(groups)
    plasticity = said("plasticity: accuracy on a new task right after it (%)", measure)
    _placements(points, (plasticity, said("stability: accuracy kept on old tasks (%)", measure)), path)
    return left_out


def retention(groups: Sequence[Group], path: Path) -> list[str]:
    """Draws what probe domains kept over what the trained tasks gained, in points; the number at a point is its rank.

    Colours, markers and bars as in :func:`probe`. Arguments, result and errors as in :func:`pareto`.
    """
    points, left_out = retention_points(groups)
    labels = ("adaptation: gain on a task right after it (points)", "retention: change on probe domains (points)")
    _placements(points, labels, path, level=0.0)
    return left_out


def _placements(points: Sequence[Point], labels: tuple[str, str], path: Path, level: float | None = None) -> None:
    """A colour and marker a placement, its points joined in the order of rank; a faint line at `level`."""
    with style():
        figure, axes = new_axes(*labels)
        if level is not None:
            axes.axhline(level, color="#999999", linewidth=0.8, zorder=1)
        series = sorted({point.series for point in points})  # a placement keeps its colour
        for number, name in enumerate(series):
            own = sorted((point for point in points if point.series == name), key=_rank)
            look = dict(zip(("color", "fmt"), look_of(number), strict=True))
            axes.plot([one.x.mean for one in own], [one.y.mean for one in own], color=look["color"], alpha=0.35)
            for index, point in enumerate(own):
                _bar(axes, point, label=None if index else name, **look)
        axes.margins(0.08)
        figure.legend(
            *axes.get_legend_handles_labels(), title="placement (numbers: rank)", loc="outside upper center", ncols=4
        )
        colours = [COLOURS[series.index(point.series) % len(COLOURS)] for point in points]
        _annotate(figure, axes, points, [point.label for point in points], colours)
        save(figure, path)


PLOTS: dict[str, Callable[[Sequence[Group], Path], list[str]]] = {
    "pareto": pareto,
    "probe": probe,
    "retention": retention,
    "ranks": rank_curves,
    "rank_loss": rank_loss,
}


def _bar(axes: Any, point: Point, **style: Any) -> None:
    axes.errorbar(point.x.mean, point.y.mean, xerr=point.x.std, yerr=point.y.std, **_BARS, **style)


def _rank(point: Point) -> float:
    try:
        return float(point.label)
    except ValueError:
        return math.inf


def _annotate(figure: Any, axes: Any, points: Sequence[Point], labels: Sequence[str], colours: Sequence[str]) -> None:
    """Writes a label beside each point where it covers no other one and no other point, as far as there is room."""
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # settles the layout, so that sizes are known
    taken = [_box(axes, point, 5.0) for point in points]
    inside = axes.get_window_extent()
    for point, label, colour in zip(points, labels, colours, strict=True):
        best, fewest = None, math.inf
        for x, y in _AROUND:
            text = axes.annotate(
                label,
                (point.x.mean, point.y.mean),
                (x, y),
                textcoords="offset points",
                ha="center" if x == 0 else "left" if x > 0 else "right",
                va="center" if y == 0 else "bottom" if y > 0 else "top",
                fontsize=8,
                color=colour,
                path_effects=[withStroke(linewidth=2, foreground="white")],  # legible on a line
            )
            box = text.get_window_extent().padded(2)
            hidden = sum(box.overlaps(other) for other in taken)
            outside = box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
            hidden += 5 * outside  # over the axes' own numbers is worse than over another label
            if hidden >= fewest:
                text.remove()
                continue
            if best is not None:
                best.remove()
            best, fewest = text, hidden
        if best is not None:
            taken.append(best.get_window_extent())


def _key(figure: Any, points: Sequence[Point]) -> None:
    """Writes numbered labels beside the axes, what all of them share above."""
    from matplotlib.lines import Line2D

    words = [point.label.split() for point in points]
    shared = [word for word in words[0] if all(word in other for other in words)]
    rests = [" ".join(word for word in own if word not in shared) or "as above" for own in words]
    texts = [f"{number:>2}  {textwrap.fill(rest, 40)}" for number, rest in enumerate(rests, start=1)]
    keys = [Line2D([], [], linestyle="", label=text) for text in texts]
    figure.set_size_inches(10, max(4.8, 0.19 * len(points)))
    title = textwrap.fill(" ".join(shared), 40)
    only_text = {"handlelength": 0, "handletextpad": 0, "alignment": "left"}
    figure.legend(handles=keys, loc="outside right upper", fontsize=8, title=title or None, **only_text)


def _box(axes: Any, point: Point, radius: float) -> Any:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((point.x.mean, point.y.mean))
    return Bbox([[x - radius, y - radius], [x + radius, y + radius]])
