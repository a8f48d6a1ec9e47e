"""Draws what a run did over its tasks: the accuracy matrix, accuracy and forgetting, growth, ranks, probe domains."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cl_runner.errors import RequestError
from cl_runner.reports.collect import Group
from cl_runner.reports.details import detail
from cl_runner.reports.drawing import COLOURS, look_of, new_axes, save, style
from cl_runner.reports.losses import common_measure, said

Content = dict[str, Any]
Named = Sequence[tuple[str, Content]]  # a label and what `detail` returns
_MOST_NUMBERS = 12  # of a larger matrix the colours alone are shown
_MOST_LINES = 16
_LEAST_SPAN = 2.0  # points


def matrix(named: Named) -> Any:
    """Returns the heat map of R[i, j] in %, row i after task i; row 0, where there is one, before any training.

    Raises:
        RequestError: there is no matrix, or there are several groups.
    """
    if len(named) != 1:
        raise RequestError(f"--plot matrix draws one group, and there are {len(named)}", "name fewer run folders")
    content = named[0][1]
    rows = [(str(index), row) for index, row in enumerate([content["initial"], *content["matrix"]])]
    rows = [(name, row) for name, row in rows if any(value is not None for value in row)]
    if not rows:
        raise _nothing("accuracy")
    tasks = content["tasks"]
    side = min(9.0, 2.2 + 0.55 * len(tasks))
    figure, axes = new_axes("evaluated on", "after task", size=(max(side, 4.2), max(0.8 * side, 3.0)))
    values = [[math.nan if value is None else 100 * value for value in row] for _, row in rows]
    _heat(
        figure,
        axes,
        values,
        [name for name, _ in rows],
        tasks,
        said("accuracy (%)", content["measure"]),
        (0, 100),
        "{:.0f}",
    )
    return figure


def over_tasks(named: Named) -> Any:
    """Returns accuracy on the tasks seen so far, and forgetting, in % over the tasks learned; bands are deviations."""
    figure, axes = new_axes("tasks learned", "", columns=2, size=(9, 3.6))
    measure = common_measure(content["measure"] for _, content in named)
    titles = (said("accuracy on tasks seen (%)", measure), "forgetting (points)")
    for one, key, label in zip(axes, ("accuracy", "forgetting"), titles, strict=True):
        _lines(one, [(name, content[key]["mean"], content[key]["std"]) for name, content in named], 100)
        one.set_ylabel(label)
        _spread(one)
    _legend(figure, axes[0], named)
    return figure


def growth(named: Named) -> Any:
    """Returns parameter growth in %, stored / base - 1, over the tasks learned."""
    figure, axes = new_axes("tasks learned", "parameter growth (%)", size=(5.4, 3.6))
    for number, (name, content) in enumerate(named[:_MOST_LINES]):
        columns = content["parameters"]
        _line(axes, number, name, columns["task"], _percent(columns["growth"]))
    _whole_ticks(axes)
    _legend(figure, axes, named)
    return figure


def ranks(named: Named) -> Any:
    """Returns the rank that each adapted layer kept: over the tasks for one group, after the last one for several.

    Raises:
        RequestError: no group has ranks.
    """
    ranked = [(name, content["ranks"]) for name, content in named if content["ranks"]["layers"]]
    if not ranked:
        raise _nothing("rank")
    layers = ranked[0][1]["layers"]
    if len(ranked) == 1:
        content = ranked[0][1]
        size = (min(10.0, 4.0 + 0.45 * len(content["tasks"])), min(14.0, 1.6 + 0.24 * len(layers)))
        figure, axes = new_axes("task", "", size=size)
        values = [[math.nan if value is None else value for value in row] for row in content["values"]]
        highest = max(value for row in values for value in row if value == value)
        tasks = [str(task) for task in content["tasks"]]
        _heat(figure, axes, values, _short(layers), tasks, "rank", (0, max(1, highest)), "{:g}")
        return figure
    figure, axes = new_axes("adapted layer", "rank after the last task", size=(9, 4.2))
    for number, (name, content) in enumerate(ranked[:_MOST_LINES]):
        last = [row[-1] for row in content["values"]]
        _line(
            axes, number, name, [layers.index(one) for one in content["layers"] if one in layers], last[: len(layers)]
        )
    axes.set_xticks(range(len(layers)), _short(layers), rotation=60, ha="right", fontsize=7)
    _legend(figure, axes, named)
    return figure


def probes(named: Named) -> Any:
    """Returns accuracy in % on probe domains over the tasks learned: of one group each and their mean, of several that.

    Raises:
        RequestError: no group has probe domains.
    """
    known = [(name, content["probes"]) for name, content in named if content["probes"]["domains"]]
    if not known:
        raise _nothing("accuracy on probe domains")
    title = "accuracy on probe domains (%)" if len(known) == 1 else "accuracy, mean over the probe domains (%)"
    figure, axes = new_axes("tasks learned (0: before any)", title, size=(6.4, 4.0))
    means = [(name, one["mean"]) for name, one in known]
    if len(known) == 1:
        one = known[0][1]
        means = list(zip(one["domains"], one["values"], strict=True))
    for number, (name, values) in enumerate(means[:_MOST_LINES]):
        _line(axes, number, name, range(len(values)), _percent(values))
    if len(known) == 1 and len(means) > 1:
        mean = [(at, value) for at, value in enumerate(_percent(known[0][1]["mean"])) if value is not None]
        axes.plot(*zip(*mean, strict=True) if mean else ([], []), color="black", linewidth=2.5, label="mean", zorder=4)
    _whole_ticks(axes)
    _spread(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4 if len(known) == 1 else 2,
                  fontsize=8)  # fmt: skip
    return figure


def losses(named: Named) -> Any:
    """Returns the loss in nats a token over the tasks learned: of one group on each task, of several on those seen.

    Raises:
        RequestError: no group has losses.
    """
    known = [(name, content["tasks"], content["losses"]) for name, content in named if content["losses"]["values"]]
    if not known:
        raise _nothing("loss of texts (losses.csv)")
    if len(known) == 1:
        _, tasks, content = known[0]
        figure, axes = new_axes("tasks learned (0: before any)", "loss (nats a token)", size=(6.4, 4.0))
        for number, (name, values) in enumerate(list(zip(tasks, content["values"], strict=True))[:_MOST_LINES]):
            _line(axes, number, name, range(len(values)), values)
        _whole_ticks(axes)
    else:
        figure, axes = new_axes("tasks learned", "loss on tasks seen (nats a token)", size=(6.4, 4.4))
        _lines(axes, [(name, content["mean"], content["std"]) for name, _, content in known], 1)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2 if len(named) > 1 else 4,
                  fontsize=8)  # fmt: skip
    return figure


PICTURES: dict[str, Callable[[Named], Any]] = {
    "matrix": matrix,
    "tasks": over_tasks,
    "growth": growth,
    "layers": ranks,
    "probes": probes,
    "losses": losses,
}


def draw(name: str, groups: Sequence[Group], path: Path) -> list[str]:
    """Draws one of `PICTURES` of the groups into a file.

    Returns:
        A sentence for each run that is left out.

    Raises:
        RequestError: there is nothing to draw, or the file cannot be written.
    """
    named, left_out = [], []
    for group in groups:
        content, problems = detail(group)
        left_out += problems
        if content["tasks"]:
            names = (group.identity("adapter"), group.identity("strategy"), group.settings)
            named.append((" ".join(word for word in names if word), content))
        else:
            left_out.append(f"{group.runs[0].folder} left out: it has no accuracy_matrix.csv")
    if not named:
        raise RequestError("nothing to draw", left_out[0])
    labels = distinct([label for label, _ in named])
    with style():
        save(PICTURES[name]([(label, content) for label, (_, content) in zip(labels, named, strict=True)]), path)
    return left_out


def distinct(labels: Sequence[str]) -> list[str]:
    """Labels without the settings that are not needed to tell them apart, long ones in several lines.

    A baseline that trains nothing has no learning rate: that alone must not put it into all other labels.
    """
    kept = [label.split(" ") for label in labels]
    for key in dict.fromkeys(word.partition("=")[0] for words in kept for word in words if "=" in word):
        fewer = [[word for word in words if word.partition("=")[0] != key] for words in kept]
        if len({tuple(words) for words in fewer}) == len({tuple(words) for words in kept}):
            kept = fewer
    return [textwrap.fill(" ".join(words), 60) for words in kept]


def _heat(
    figure: Any,
    axes: Any,
    values: list[list[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    span: tuple[float, float],
    form: str,
) -> None:
    axes.grid(False)
    image = axes.imshow(values, cmap="viridis", vmin=span[0], vmax=span[1], aspect="auto")
    axes.set_yticks(range(len(rows)), rows, fontsize=8 if len(rows) < 20 else 7)
    steep = len(columns) > 6 or max(map(len, columns)) > 8
    slant: dict[str, Any] = {"rotation": 45, "ha": "right"} if steep else {}
    axes.set_xticks(range(len(columns)), columns, fontsize=8, **slant)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if max(len(columns), 0 if form == "{:g}" else len(rows)) <= _MOST_NUMBERS:
        middle = (span[0] + span[1]) / 2
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if value == value:
                    colour = "black" if value > middle else "white"
                    axes.text(column, row, form.format(value), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label=label, shrink=0.9, pad=0.02).outline.set_visible(False)


def _lines(axes: Any, series: Sequence[tuple[str, list[Any], list[Any]]], scale: float) -> None:
    for number, (name, means, deviations) in enumerate(series[:_MOST_LINES]):
        tasks = list(range(1, len(means) + 1))
        _line(axes, number, name, tasks, [None if value is None else scale * value for value in means])
        known = [
            (task, scale * mean, scale * spread)
            for task, mean, spread in zip(tasks, means, deviations, strict=True)
            if mean is not None and spread is not None
        ]
        if known:
            at, centre, spread = zip(*known, strict=True)
            low = [middle - width for middle, width in zip(centre, spread, strict=True)]
            high = [middle + width for middle, width in zip(centre, spread, strict=True)]
            axes.fill_between(at, low, high, color=COLOURS[number % len(COLOURS)], alpha=0.18, linewidth=0)
    _whole_ticks(axes)


def _percent(values: Sequence[Any]) -> list[Any]:
    return [None if value is None else 100 * value for value in values]


def _spread(axes: Any) -> None:
    """Noise of a tenth of a point must not look like a cliff."""
    low, high = axes.get_ylim()
    if high - low < _LEAST_SPAN:
        axes.set_ylim((low + high - _LEAST_SPAN) / 2, (low + high + _LEAST_SPAN) / 2)


def _line(axes: Any, number: int, name: str, at: Sequence[Any], values: Sequence[Any]) -> None:
    known = [(x, y) for x, y in zip(at, values, strict=False) if y is not None]
    colour, marker = look_of(number)
    axes.plot([x for x, _ in known], [y for _, y in known], color=colour, marker=marker, markersize=5, label=name)


def _whole_ticks(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _legend(figure: Any, axes: Any, named: Named) -> None:
    if len(named) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)


def _short(names: Sequence[str]) -> list[str]:
    """Names of layers without the modules that all of them are in, cut from the left where they are still long."""
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts) and len(parts) > 1:
        shared += 1
    shorter = (".".join(part[shared:]) for part in parts)
    return [name if len(name) <= 34 else "…" + name[-33:] for name in shorter]


def _nothing(what: str) -> RequestError:
    return RequestError(f"nothing to draw: no run holds any {what}")
