"""The tables of one run folder as numbers; a table that is not there is empty, and one that is damaged is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cl_runner.errors import RequestError
from cl_runner.reports.csv_files import Number, csv_lines, number

Row = dict[str, Number]
PARAMETERS = (
    "task", "base", "trainable", "adapter", "normalisation", "head", "stored", "inference", "growth",
    "epochs", "best_epoch", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class LayerRank:
    """One adapted layer after one task (from 1): the rank that was kept, None where the method has no rank."""

    task: int
    name: str
    rank: Number


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy in [0, 1] on one class of one task (from 1) after `after_task` tasks."""

    after_task: int
    class_id: int
    name: str
    task: int
    accuracy: float


@dataclass(frozen=True)
class TaskLoss:
    """A task of texts (from 1) after `after_task` tasks: what its score is, its loss in nats a token, and the rest."""

    after_task: int
    task: int
    metric: str
    loss: Number
    perplexity: Number
    token_accuracy: Number
    tokens: Number


@dataclass(frozen=True)
class RunTables:
    """What a run measured.

    Attributes:
        tasks: the names of the T tasks.
        initial: T accuracies in [0, 1] before any training; None = not evaluated.
        matrix: T x T accuracies in [0, 1], row i - 1 after task i.
        parameters: the rows of `parameters.csv`, one a task, the columns that every run has.
        layers: the rows of `layers.csv`.
        classes: the rows of `per_class_accuracy.csv`.
        probes: by probe domain, T + 1 accuracies in [0, 1] after 0 (before training) to T tasks; None = not evaluated.
        losses: the rows of `losses.csv`; none but of texts.
    """

    tasks: list[str]
    initial: list[Number]
    matrix: list[list[Number]]
    parameters: list[Row] = field(default_factory=list)
    layers: list[LayerRank] = field(default_factory=list)
    classes: list[ClassAccuracy] = field(default_factory=list)
    probes: dict[str, list[Number]] = field(default_factory=dict)
    losses: list[TaskLoss] = field(default_factory=list)


def read_tables(folder: Path) -> RunTables:
    """Reads the tables of a run folder.

    Raises:
        RequestError: a table holds something else than numbers, or cannot be read.
    """
    tasks, (initial, *matrix) = _rows_after_tasks(folder / "accuracy_matrix.csv")
    return RunTables(
        tasks,
        initial,
        matrix,
        _parameters(folder / "parameters.csv"),
        _layers(folder / "layers.csv"),
        _classes(folder / "per_class_accuracy.csv"),
        read_probes(folder, len(tasks)),
        read_losses(folder),
    )


def read_probes(folder: Path, n_tasks: int) -> dict[str, list[Number]]:
    """Reads `probes.csv`: by domain, accuracies after 0 to `n_tasks` tasks; empty where there were no probe domains.

    Raises:
        RequestError: the table holds something else than numbers, or cannot be read.
    """
    domains, rows = _rows_after_tasks(folder / "probes.csv", n_tasks)
    return {name: [row[column] for row in rows] for column, name in enumerate(domains)}


def read_losses(folder: Path) -> list[TaskLoss]:
    """Reads `losses.csv`; empty where there were no texts.

    Raises:
        RequestError: the table holds something else than numbers, or cannot be read.
    """
    place = folder / "losses.csv"
    header, lines = _table(place)
    try:
        rows = [dict(zip(header, line, strict=True)) for line in lines]
        return [
            TaskLoss(
                int(row["after_task"]),
                int(row["task"]),
                row["metric"],
                *(number(row[key]) for key in ("loss", "perplexity", "token_accuracy", "tokens")),
            )
            for row in rows
        ]
    except (ValueError, KeyError) as error:
        raise _damaged(place, error) from error


def _rows_after_tasks(place: Path, n_tasks: int | None = None) -> tuple[list[str], list[list[Number]]]:
    """The names of the columns and the rows after 0 to T tasks; by default T is the number of columns."""
    header, rows = _table(place)
    columns = header[1:]
    try:
        by_task = {int(row[0]): [number(cell) for cell in row[1:]] for row in rows}
    except (ValueError, IndexError) as error:
        raise _damaged(place, error) from error
    unknown: list[Number] = [None] * len(columns)
    cells = [by_task.get(task, unknown) for task in range((len(columns) if n_tasks is None else n_tasks) + 1)]
    if any(len(row) != len(columns) for row in cells):
        raise RequestError(f"{place} is damaged: its rows differ in length")
    return columns, cells


def _parameters(place: Path) -> list[Row]:
    header, rows = _table(place)
    try:
        return [{key: number(cell) for key, cell in zip(header, row, strict=True) if key in PARAMETERS} for row in rows]
    except ValueError as error:
        raise _damaged(place, error) from error


def _layers(place: Path) -> list[LayerRank]:
    header, rows = _table(place)
    try:
        task, name, rank = (header.index(key) for key in ("task", "name", "rank")) if header else (0, 0, 0)
        return [LayerRank(int(row[task]), row[name], number(row[rank])) for row in rows]
    except (ValueError, IndexError) as error:
        raise _damaged(place, error) from error


def _classes(place: Path) -> list[ClassAccuracy]:
    header, rows = _table(place)
    keys = ("after_task", "class_id", "class_name", "task", "accuracy")
    try:
        after, label, name, task, accuracy = (header.index(key) for key in keys) if header else (0,) * len(keys)
        return [
            ClassAccuracy(int(row[after]), int(row[label]), row[name], int(row[task]), float(row[accuracy]))
            for row in rows
        ]
    except (ValueError, IndexError) as error:
        raise _damaged(place, error) from error


def _table(place: Path) -> tuple[list[str], list[list[str]]]:
    if not place.is_file():
        return [], []
    header, *rows = csv_lines(place)
    return header, rows


def _damaged(place: Path, error: Exception) -> RequestError:
    return RequestError(f"{place} is damaged: {error}")
