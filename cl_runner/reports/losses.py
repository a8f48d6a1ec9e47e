"""Losses of texts: what a comparison says of them, and what their scores are called. Nothing is drawn here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cl_runner.errors import RequestError
from cl_runner.reports.collect import Group
from cl_runner.reports.csv_files import AtRank, read_rank_curve
from cl_runner.reports.points import Curve, Measured
from cl_runner.reports.run_files import TaskLoss, read_losses, read_tables

ACCURACY, TOKEN_ACCURACY, SCORE = "accuracy", "token accuracy", "score"
_MOST_PANELS = 16


@dataclass(frozen=True)
class Panel:
    """Losses of one task (from 1) over the rank, after `after_task` tasks: a curve a group."""

    after_task: int
    task: int
    name: str
    curves: list[Curve]


def measure_of(rows: Iterable[TaskLoss]) -> str:
    """Returns what the accuracy matrix of a run holds, from its losses: there are none but of texts."""
    metrics = {row.metric for row in rows}
    return ACCURACY if not metrics else TOKEN_ACCURACY if metrics == {"token_accuracy"} else SCORE


def common_measure(measures: Iterable[str]) -> str:
    """Returns one word for what several runs measured; "accuracy" where some of them are no texts."""
    found = set(measures)
    return found.pop() if len(found) == 1 else ACCURACY if ACCURACY in found or not found else SCORE


def measure_of_groups(groups: Sequence[Group]) -> str:
    """Returns what the runs of several groups measured."""
    return common_measure(measure_of(read_losses(group.runs[0].folder)) for group in groups)


def said(text: str, measure: str) -> str:
    """Returns a title or label that says accuracy with what was really measured."""
    return text.replace("accuracy", measure).replace("Accuracy", measure[:1].upper() + measure[1:])


def rank_panels(groups: Sequence[Group]) -> tuple[list[Panel], list[str]]:
    """Returns the losses over the rank, a panel a stage and task, and a sentence for what is left out.

    A curve is the mean over the seeds of a group, at the ranks that all of them have. Where there would be more panels
    than a picture holds, only those after the last task are there.

    Raises:
        RequestError: no group has such losses.
    """
    found: dict[tuple[int, int], list[Curve]] = defaultdict(list)
    names: dict[int, str] = {}
    left_out = []
    for group in groups:
        try:
            values = _losses_at_ranks(group)
        except RequestError as error:
            left_out.append(f"{group.runs[0].folder} left out: {error.message}")
            continue
        names = {**_names(group), **names}
        label = " ".join(name for name in (group.identity("adapter"), group.settings) if name)
        for cell in sorted({(after, task) for after, task, _ in values}):
            at_rank = {rank: seeds for (after, task, rank), seeds in values.items() if (after, task) == cell}
            ranks = sorted(at_rank)
            found[cell].append(Curve(label, ranks, [Measured.of(at_rank[rank]) for rank in ranks]))
    if not found:
        raise RequestError("nothing to draw", left_out[0] if left_out else None)
    cells = sorted(found)
    if len(cells) > _MOST_PANELS:
        cells = [cell for cell in cells if cell[0] == cells[-1][0]]
        left_out.append(f"{len(found)} panels are too many: those after the last task are drawn")
    return [Panel(after, task, names.get(task, f"task {task}"), found[after, task]) for after, task in cells], left_out


def rank_loss_table(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns a row a group, stage, task and rank: loss (nats a token) and score, mean and deviation over the seeds."""
    rows = []
    for group in groups:
        try:
            losses, scores = _losses_at_ranks(group), _at_ranks(group, "accuracy")
        except RequestError:
            continue
        names = _names(group)
        known = {key: group.identity(key) for key in ("adapter", "strategy")}
        for cell in sorted(losses):
            after, task, rank = cell
            row = {**known, "settings": group.settings, "seeds": len(group.runs), "after_task": after, "task": task}
            row |= {"name": names.get(task, ""), "rank": rank}
            for name, values in (("loss", losses[cell]), ("score", scores.get(cell))):
                measured = None if values is None else Measured.of(values)
                row |= {name: measured and measured.mean, f"{name}_std": measured and measured.std}
            rows.append(row)
    return rows


def _losses_at_ranks(group: Group) -> dict[tuple[int, int, float], list[float]]:
    found = _at_ranks(group, "loss")
    if not found:
        raise RequestError(f"{group.runs[0].folder}: rank_curve.csv holds no losses that all seeds have")
    return found


def _at_ranks(group: Group, figure: str) -> dict[tuple[int, int, float], list[float]]:
    """The values of all seeds by stage, task and rank, where all of them have one."""
    found: dict[tuple[int, int, float], list[float]] = defaultdict(list)
    for run in group.runs:
        own: dict[tuple[int, int, float], AtRank] = {
            (row.after_task, row.task, row.rank): row for row in read_rank_curve(run.folder)
        }
        for cell, row in own.items():
            value = getattr(row, figure)
            if value is not None:
                found[cell].append(value)
    return {cell: values for cell, values in found.items() if len(values) == len(group.runs)}


def _names(group: Group) -> dict[int, str]:
    """The names of the tasks, by number from 1."""
    try:
        return dict(enumerate(read_tables(group.runs[0].folder).tasks, start=1))
    except (RequestError, OSError):
        return {}
