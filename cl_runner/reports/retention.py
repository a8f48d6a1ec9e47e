"""Adaptation against retention: what trained tasks gain over the start, and what that costs the probe domains.

Both are differences of accuracies. R[i, j] is the accuracy on task j after task i, P[i, d] that on probe domain d;
row 0 is before any training:

    adaptation after task i   mean over j <= i of R[j, j] - R[0, j]
    retention after task i    mean over d of P[i, d] - P[0, d]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from cl_runner.errors import RequestError
from cl_runner.reports.collect import Group, Run
from cl_runner.reports.losses import rank_loss_table
from cl_runner.reports.points import Measured, Point, label_of, percents, placement_of, probe_table, series_of, some
from cl_runner.reports.run_files import Number, RunTables, read_tables


def adaptation(tables: RunTables) -> list[Number]:
    """Returns the adaptation after tasks 1 to T, in [-1, 1]; None where an entry that it needs was not evaluated."""
    gains = [_minus(row[task], tables.initial[task]) for task, row in enumerate(tables.matrix)]
    return [_mean(gains[: task + 1]) for task in range(len(gains))]


def retention(tables: RunTables) -> list[Number]:
    """Returns the retention after tasks 1 to T, in [-1, 1]; None without probe domains or where one has no accuracy."""
    n_tasks = len(tables.tasks)
    changes = [[_minus(now, values[0]) for now in values[1:]] for values in tables.probes.values()]
    return [_mean([row[task] for row in changes]) for task in range(n_tasks)]


def retention_points(groups: Sequence[Group]) -> tuple[list[Point], list[str]]:
    """Returns retention over adaptation after the last task, in points, a point a group, and why others have none.

    The label is the rank, the series the placement, with adapter or strategy where the groups use several.

    Raises:
        RequestError: no group has any.
    """
    points, left_out = [], []
    for group, series in zip(groups, series_of(groups), strict=True):
        try:
            x, y = zip(*(_at_the_end(run) for run in group.runs), strict=True)
        except RequestError as error:
            left_out.append(f"{group.runs[0].folder} left out: {error.message}")
            continue
        rank = group.runs[0].setting("adapter.rank")
        label = "" if rank is None else str(rank)
        points.append(Point(Measured.of(percents(x)), Measured.of(percents(y)), label, series))
    return some(points, left_out), left_out


def retention_table(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns a row a group and task: adaptation and retention so far, in [-1, 1]; None = not applicable."""
    rows = []
    for group in groups:
        run = group.runs[0]
        tables = _tables(group)
        names = {
            "label": label_of(run),
            "placement": placement_of(run),
            "rank": run.setting("adapter.rank"),
            "adapter": group.identity("adapter"),
            "strategy": group.identity("strategy"),
            "settings": group.settings,
            "seeds": len(group.runs),
        }
        gains, kept = [adaptation(one) for one in tables], [retention(one) for one in tables]
        for task, name in enumerate(tables[0].tasks if tables else []):
            row = {**names, "after_task": task + 1, "task": name}
            row |= _measured("adaptation", [values[task] for values in gains])
            rows.append(row | _measured("retention", [values[task] for values in kept]))
    return rows


NUMBERS: dict[str, Callable[[Sequence[Group]], list[dict[str, Any]]]] = {
    "probe": probe_table,
    "retention": retention_table,
    "rank_loss": rank_loss_table,
}
"""Plots that come with a table of their numbers."""


def _tables(group: Group) -> list[RunTables]:
    """Of every seed, or none: a mean over some of them would be called one over all."""
    try:
        tables = [read_tables(run.folder) for run in group.runs]
    except (RequestError, OSError):
        return []
    return tables if all(one.tasks == tables[0].tasks for one in tables) else []


def _measured(name: str, values: Sequence[Number]) -> dict[str, Number]:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {name: None, f"{name}_std": None}
    measured = Measured.of(known)
    return {name: measured.mean, f"{name}_std": measured.std}


def _at_the_end(run: Run) -> tuple[float, float]:
    tables = read_tables(run.folder)
    if not tables.tasks:
        raise RequestError(f"{run.folder} has no accuracy_matrix.csv")
    if not tables.probes:
        raise RequestError(f"{run.folder}: retention needs probe domains, and it has no probes.csv")
    gained, kept = adaptation(tables)[-1], retention(tables)[-1]
    if gained is None:
        raise RequestError(f"{run.folder}: adaptation needs every task before training and right after it")
    if kept is None:
        raise RequestError(f"{run.folder}: retention needs every probe domain before training and after the last task")
    return gained, kept


def _minus(now: Number, before: Number) -> Number:
    return None if now is None or before is None else now - before


def _mean(values: Sequence[Number]) -> Number:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
