"""What the pages and pictures show of one group besides its row in the table: means over its seeds, ready for JSON."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from cl_runner.errors import RequestError
from cl_runner.reports.collect import Group
from cl_runner.reports.losses import measure_of
from cl_runner.reports.run_files import Number, Row, RunTables, TaskLoss, read_tables

_OF_LOSSES = ("loss", "perplexity", "token_accuracy", "tokens")
_OF_PARAMETERS = ("base", "trainable", "adapter", "normalisation", "head", "stored", "growth", "epochs", "best_epoch")


def accuracy_over_tasks(matrix: Sequence[Sequence[Number]]) -> list[Number]:
    """Returns, after each task i, mean over j <= i of R[i, j]: the accuracy on the tasks seen so far."""
    return [_mean(row[: index + 1]) for index, row in enumerate(matrix)]


def forgetting_over_tasks(matrix: Sequence[Sequence[Number]]) -> list[Number]:
    """Returns, after each task i, mean over j < i of (max over k = j..i-1 of R[k, j]) - R[i, j]; None after the first.

    After the last task this is the forgetting of the summary (Chaudhry et al.).
    """
    values: list[Number] = []
    for index, row in enumerate(matrix):
        drops: list[Number] = []
        for task in range(index):
            earlier = [matrix[k][task] for k in range(task, index)]
            best = max((value for value in earlier if value is not None), default=None)
            now = row[task]
            drops.append(None if now is None or best is None else best - now)
        values.append(_mean(drops))
    return values


def probes_over_tasks(probes: Mapping[str, Sequence[Number]], domains: Sequence[str]) -> list[Number]:
    """Returns the mean over probe domains after 0 to T tasks; None where one of them was not evaluated."""
    return [_mean(row) for row in zip(*(probes[name] for name in domains), strict=True)]


def detail(group: Group) -> tuple[dict[str, Any], list[str]]:
    """Returns the numbers of one group, accuracies in [0, 1], None = not known, and a sentence a run left out of them.

    Keys: `tasks`, `initial`, `matrix`, `accuracy` and `forgetting` over tasks (each `mean` and `std`), `parameters` (a
    list a column, over tasks), `ranks` (`layers`, `tasks`, `values`: a row a layer), `classes`, `rank_curve`, `probes`
    (`domains`, `values`: after 0 to T tasks, a row a domain; `mean` and `std` of the mean over the domains), `losses`
    of texts (`values`: after 0 to T tasks, a row a task; `mean` and `std` of the mean over the tasks seen so far;
    `tasks`: for each its `metric`, and its figures right after it, `learned`, and after the last one, `end`), `measure`
    (what the accuracies are called).
    """
    tables, problems = [], []
    for run in group.runs:
        try:
            tables.append(read_tables(run.folder))
        except (RequestError, OSError) as error:
            problems.append(f"{run.folder}: {error}")
    # seeds of one group have the same tasks; where a folder was mixed up, those of the first one count
    tables = [one for one in tables if one.tasks == tables[0].tasks]
    if not tables:
        return {"tasks": []}, problems
    content = {
        "tasks": tables[0].tasks,
        "initial": _means([one.initial for one in tables]),
        "matrix": [_means(rows) for rows in zip(*(one.matrix for one in tables), strict=True)],
        "accuracy": _curve([accuracy_over_tasks(one.matrix) for one in tables]),
        "forgetting": _curve([forgetting_over_tasks(one.matrix) for one in tables]),
        "parameters": _parameters([one.parameters for one in tables]),
        "ranks": _ranks(tables),
        "classes": _classes(tables),
        "rank_curve": _rank_curve(group),
        "probes": _probes(tables),
        "losses": _losses(tables),
        "measure": measure_of(tables[0].losses),
    }
    return content, problems


def _mean(values: Sequence[Number]) -> Number:
    """The mean; None where a value is missing, for a mean over other tasks would be another figure."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _means(rows: Sequence[Sequence[Number]]) -> list[Number]:
    return [_mean(values) for values in zip(*rows, strict=True)]


def _curve(rows: Sequence[Sequence[Number]]) -> dict[str, list[Number]]:
    return {"mean": _means(rows), "std": [_deviation(values) for values in zip(*rows, strict=True)]}


def _deviation(values: Sequence[Number]) -> Number:
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 and len(known) == len(values) else None


def _parameters(of_runs: Sequence[list[Row]]) -> dict[str, Any]:
    """Columns over tasks; `task` is the number of tasks learned, as joint training has one row for all of them."""
    shortest = min(len(rows) for rows in of_runs)
    rows = [[run[index] for run in of_runs] for index in range(shortest)]
    columns = {key: [_mean([one.get(key) for one in row]) for row in rows] for key in _OF_PARAMETERS}
    return {"task": [row[0].get("task") for row in rows], **columns}


def _ranks(tables: Sequence[RunTables]) -> dict[str, Any]:
    ranks: dict[tuple[str, int], list[Number]] = defaultdict(list)
    for one in tables:
        for layer in one.layers:
            ranks[layer.name, layer.task].append(layer.rank)
    layers = list(dict.fromkeys(layer.name for one in tables for layer in one.layers))
    tasks = sorted({layer.task for one in tables for layer in one.layers})
    values = [[_mean(ranks.get((name, task), [])) for task in tasks] for name in layers]
    if all(value is None for row in values for value in row):  # a method without ranks
        return {"layers": [], "tasks": [], "values": []}
    return {"layers": layers, "tasks": tasks, "values": values}


def _classes(tables: Sequence[RunTables]) -> list[dict[str, Any]]:
    """Each class of each task: its accuracy right after the task was learned, and after the last one."""
    last = len(tables[0].tasks)
    found: dict[tuple[int, int, str], dict[str, list[float]]] = {}
    for one in tables:
        for item in one.classes:
            cell = found.setdefault((item.task, item.class_id, item.name), {"learned": [], "end": []})
            if item.after_task == item.task:
                cell["learned"].append(item.accuracy)
            if item.after_task == last:
                cell["end"].append(item.accuracy)
    return [
        {"task": task, "name": name, "learned": _mean(cell["learned"]), "end": _mean(cell["end"])}
        for (task, _, name), cell in sorted(found.items(), key=lambda pair: pair[0][:2])
    ]


def _probes(tables: Sequence[RunTables]) -> dict[str, Any]:
    """Domains that every seed has, where they have any."""
    domains = [name for name in tables[0].probes if all(name in one.probes for one in tables)]
    if not domains:
        return {"domains": [], "values": [], "mean": [], "std": []}
    values = [_means([one.probes[name] for one in tables]) for name in domains]
    return {"domains": domains, "values": values, **_curve([probes_over_tasks(one.probes, domains) for one in tables])}


def _losses(tables: Sequence[RunTables]) -> dict[str, Any]:
    """What texts have besides their scores; nothing where a seed has none."""
    if not all(one.losses for one in tables):
        return {"values": [], "mean": [], "std": [], "tasks": []}
    last = len(tables[0].tasks)
    cells = [{(row.after_task, row.task): row for row in one.losses} for one in tables]

    def mean(after: int, task: int, figure: str = "loss") -> Number:
        return _mean([_figure(own.get((after, task)), figure) for own in cells])

    def seen(own: Mapping[tuple[int, int], TaskLoss], after: int) -> Number:
        return _mean([_figure(own.get((after, task)), "loss") for task in range(1, after + 1)])

    metrics = {row.task: row.metric for row in tables[0].losses}
    return {
        "values": [[mean(after, task) for after in range(last + 1)] for task in range(1, last + 1)],
        **_curve([[seen(own, after) for after in range(1, last + 1)] for own in cells]),
        "tasks": [
            {
                "metric": metrics.get(task, ""),
                "learned": {figure: mean(task, task, figure) for figure in _OF_LOSSES},
                "end": {figure: mean(last, task, figure) for figure in _OF_LOSSES},
            }
            for task in range(1, last + 1)
        ],
    }


def _figure(row: TaskLoss | None, name: str) -> Number:
    value: Number = None if row is None else getattr(row, name)
    return value


def _rank_curve(group: Group) -> list[dict[str, Number]]:
    """Accuracy and, of texts, loss at the ranks that all seeds have one of, mean over the tasks after the last one."""
    runs = [run for run in group.runs if (run.folder / "rank_curve.csv").is_file()]
    if not runs:
        return []
    found = {figure: [run.rank_curve(figure) for run in runs] for figure in ("accuracy", "loss")}
    shared = {figure: set.intersection(*(set(curve) for curve in curves)) for figure, curves in found.items()}
    return [
        {
            "rank": rank,
            **{
                figure: _mean([curve[rank] for curve in curves]) if rank in shared[figure] else None
                for figure, curves in found.items()
            },
        }
        for rank in sorted(shared["accuracy"] | shared["loss"])
    ]


def rounded(value: Any, digits: int = 6) -> Any:
    """Returns the same structure with its floats at so many significant digits, which makes a page half as large."""
    if isinstance(value, float):
        short = float(f"{value:.{digits}g}")
        return int(short) if short.is_integer() else short
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return value
