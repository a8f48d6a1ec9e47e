"""What a run has measured so far, as its tables and its summary need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cl_runner.metrics import summarize
from cl_runner.recording.losses import Losses
from cl_runner.recording.probes import Probes

_FROM_PARAMETERS = {  # key of the summary: column of the last row of parameters.csv
    "parameter_growth": "growth",
    "base_parameters": "base",
    "trainable_parameters": "trainable",
    "stored_parameters": "stored",
    "inference_parameters": "inference",
    "adapter_parameters": "adapter",
}
_ROWS = ("parameters", "layers", "ranks", "classes")


@dataclass
class Measured:
    """Everything that a run has measured.

    Attributes:
        tasks: the names of the T tasks.
        matrix: T x T accuracies in [0, 1], row i - 1 after task i; NaN where not evaluated.
        initial: T accuracies before any training; NaN where not evaluated.
        summary: keys of `summary.json` that were said so far.
        parameters, layers, ranks, classes: rows of the tables.
        skipped: steps that taught nothing, in this attempt.
    """

    tasks: list[str] = field(default_factory=list)
    probe_names: Sequence[str] = ()
    summary: dict[str, Any] = field(default_factory=dict)
    parameters: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    classes: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0

    def __post_init__(self) -> None:
        n_tasks = len(self.tasks)
        self.matrix = np.full((n_tasks, n_tasks), np.nan)
        self.initial = np.full(n_tasks, np.nan)
        self.probes = Probes(self.probe_names, n_tasks)
        self.losses = Losses(self.tasks)

    def put_row(self, after_task: int, accuracies: Sequence[float | None]) -> list[float]:
        """Takes a row of the matrix; 0 is before any training.

        Raises:
            ValueError: it has another length than the stream, or there is no such row.
        """
        row = np.array(accuracies, dtype=np.float64)
        n_tasks = len(self.tasks)
        if row.shape != (n_tasks,) or not 0 <= after_task <= n_tasks:
            raise ValueError(f"after task {after_task}: {row.shape} accuracies for a stream of {n_tasks} tasks")
        if after_task == 0:
            self.initial = row
        else:
            self.matrix[after_task - 1] = row
        return list(row.tolist())

    def add_classes(
        self, after_task: int, task: int, accuracies: Mapping[int, float], names: Mapping[int, str]
    ) -> None:
        """Takes accuracies of a task by class id; ``names`` holds the names of the classes."""
        for label, value in sorted(accuracies.items()):
            row = {"after_task": after_task, "class_id": label, "class_name": names.get(label, str(label))}
            self.classes.append({**row, "accuracy": value, "task": task})

    def add_inferred(self, after_task: int, shares: Sequence[float | None]) -> None:
        """Takes the shares of each task's samples whose task was recognised; those after the last task count."""
        if after_task == len(self.tasks):
            values = np.array(shares, dtype=np.float64)
            self.summary["task_inference_accuracy"] = None if np.isnan(values).any() else float(values.mean())

    def evaluated(self) -> list[tuple[int, list[float]]]:
        """The rows of the matrix that hold something, each with the number of tasks trained by then."""
        rows = [(0, self.initial), *enumerate(self.matrix, start=1)]
        return [(after, row.tolist()) for after, row in rows if not np.isnan(row).all()]

    def summarise(self, status: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What `summary.json` says: what was said, counted and measured, in this order."""
        last = self.parameters[-1] if self.parameters else {}
        counts = {key: last[column] for key, column in _FROM_PARAMETERS.items() if column in last}
        metrics = summarize(self.matrix, self.initial) if self.tasks else {}
        summary = {**counts, **self.summary, **fields, "status": status, **metrics}
        kept = self.probes.retention()
        for found in (self.losses.summary(), {} if kept is None else {"retention": kept}):
            # a stream that measures one of its own has said so
            summary |= {key: value for key, value in found.items() if summary.get(key) is None}
        return summary

    def saved(self) -> dict[str, Any]:
        """All of it, in plain values."""
        rows = {name: list(getattr(self, name)) for name in _ROWS}
        matrix = {"matrix": self.matrix.tolist(), "initial": self.initial.tolist()}
        cells = {"probes": self.probes.cells, "losses": self.losses.cells}
        return rows | matrix | cells | {"summary": dict(self.summary)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes it back, for the same tasks."""
        for name in _ROWS:
            setattr(self, name, [dict(row) for row in state[name]])
        self.matrix = np.array(state["matrix"], dtype=np.float64).reshape(self.matrix.shape)
        self.initial = np.array(state["initial"], dtype=np.float64)
        self.probes.cells, self.losses.cells = dict(state["probes"]), dict(state["losses"])
        self.summary |= state["summary"]
