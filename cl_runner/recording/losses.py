"""Losses on the tasks of a stream of texts, beside the scores that the accuracy matrix holds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cl_runner.recording.events import plain

FIGURES = ("metric", "loss", "perplexity", "token_accuracy", "tokens")
Figures = Mapping[str, Any]
"""Of one task: `metric` (what its score is), `loss` (nats a token), `perplexity`, `token_accuracy`, `tokens`."""


class Losses:
    """What a run measured on its texts, after 0 (before any training) to T tasks; empty where there are none.

    With L[i, j] the loss on task j after task i, and R[i, j] its score in [0, 1]:

    ==================  ====================================================
    loss                mean over j of L[T, j]
    delta_loss          mean over j < T of L[T, j] - L[j, j]
    last_task_loss      L[T, T]
    retention           mean over j < T of R[T, j] / R[j, j]
    ==================  ====================================================

    Args:
        tasks: the names of the T tasks.
    """

    def __init__(self, tasks: Sequence[str] = ()) -> None:
        self._tasks = list(tasks)
        self.cells: dict[tuple[int, int], dict[str, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self.cells)

    def add(
        self, after_task: int, scores: Sequence[float | None], figures: Sequence[Figures | None] | None
    ) -> dict[int, dict[str, Any]]:
        """Takes an evaluation after so many tasks: the score of each task, and its figures where it was evaluated.

        Returns:
            The figures by task, from 1; a figure that is no finite number is None.

        Raises:
            ValueError: not one entry a task, or a figure that has no column.
        """
        if figures is None:
            return {}
        if len(figures) != len(self._tasks) or len(scores) != len(self._tasks):
            raise ValueError(f"after task {after_task}: {len(figures)} figures for {len(self._tasks)} tasks")
        found = {}
        for task, (score, given) in enumerate(zip(scores, figures, strict=True), start=1):
            if given is None:
                continue
            unknown = [name for name in given if name not in FIGURES]
            if unknown:
                raise ValueError(f"figure {unknown[0]!r} of task {task} is none of {list(FIGURES)}")
            found[task] = {name: plain(given.get(name)) for name in FIGURES}
            self.cells[after_task, task] = found[task] | {"score": plain(score)}
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows of ``losses.csv``, in the order of the evaluations."""
        cells = sorted(self.cells.items())
        return [
            {"after_task": after, "task": task, "name": self._tasks[task - 1], **cell} for (after, task), cell in cells
        ]

    def row(self, after_task: int) -> list[float | None]:
        """Returns the loss on each task after so many tasks; None = not evaluated."""
        return [self._loss(after_task, task) for task in range(1, len(self._tasks) + 1)]

    def summary(self) -> dict[str, float | None]:
        """Returns the keys of the summary; none without texts, None where an entry that is needed was not evaluated."""
        if not self.cells:
            return {}
        last = len(self._tasks)
        earlier = range(1, last)
        return {
            "loss": _mean(self.row(last)),
            "delta_loss": _mean([_minus(self._loss(last, task), self._loss(task, task)) for task in earlier]),
            "last_task_loss": self._loss(last, last),
            "retention": _mean([_quotient(self._score(last, task), self._score(task, task)) for task in earlier]),
        }

    def _loss(self, after: int, task: int) -> float | None:
        return self.cells.get((after, task), {}).get("loss")

    def _score(self, after: int, task: int) -> float | None:
        return self.cells.get((after, task), {}).get("score")


def _minus(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def _quotient(now: float | None, before: float | None) -> float | None:
    return None if now is None or not before else now / before


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where one is missing: a mean over others is another figure."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there and len(there) == len(values) else None
