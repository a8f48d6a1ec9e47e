"""What is measured of each task that is evaluated."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import Tensor


class Meter(SupervisedPlugin):
    """What is measured of each evaluated task, by task.

    Attributes:
        accuracies: the entry of the accuracy matrix, in [0, 1].
        recognised: share of a task's samples whose task was inferred right; only where the network infers tasks.
        by_class: share of a class's samples whose class is right, by task and class id.
        figures: what else was measured, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.accuracies: dict[int, float] = {}
        self.recognised: dict[int, float] = {}
        self.by_class: dict[int, dict[int, float]] = {}
        self.figures: dict[int, dict[str, Any]] = {}

    @property
    def _tables(self) -> tuple[dict[int, Any], ...]:
        return self.accuracies, self.recognised, self.by_class, self.figures

    def clear(self) -> None:
        """Forgets what was measured."""
        for found in self._tables:
            found.clear()

    def reading(self, task: int) -> list[Any]:
        """Everything that was measured of a task."""
        return [copy.copy(table.get(task)) for table in self._tables]

    def put(self, task: int, reading: Sequence[Any]) -> None:
        """Takes what `reading` gave for what was measured of the task."""
        for table, value in zip(self._tables, reading, strict=True):
            if value is not None:
                table[task] = copy.copy(value)


class AccuracyMeter(Meter):
    """Accuracy of each evaluated task, among its candidates.

    Args:
        excluded: (T, n_classes), true where a class is not a candidate of the task at evaluation.
        aliases: the class (n_classes,) that stands for each, on the device, where several cannot be told apart.
    """

    def __init__(self, excluded: Tensor, aliases: Tensor | None = None) -> None:
        super().__init__()
        self.excluded, self.aliases = excluded, aliases

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Starts counting."""
        self.correct = torch.zeros((), dtype=torch.int64, device=strategy.device)
        self.own_task = torch.zeros_like(self.correct)
        self.of_class = torch.zeros(2, self.excluded.shape[1], dtype=torch.int64, device=strategy.device)  # right, seen
        self.total = self.inferred = 0
        self.any_excluded = bool(self.excluded[strategy.experience.current_experience].any())

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Counts a batch on the device."""
        logits = strategy.mb_output
        excluded = self.excluded[strategy.experience.current_experience]
        if self.any_excluded:
            logits = logits.masked_fill(excluded[: logits.shape[1]].to(logits.device), float("-inf"))
        chosen_class = logits.argmax(1)
        right = chosen_class == strategy.mb_y
        if self.aliases is not None:
            right = self.aliases[chosen_class] == self.aliases[strategy.mb_y]
        self.correct += right.sum()
        self.total += len(strategy.mb_y)
        self.of_class.index_add_(1, strategy.mb_y, torch.stack([right, torch.ones_like(right)]).long())
        chosen: Tensor | None = getattr(strategy.model, "inferred", None)
        if chosen is not None:
            self.own_task += (chosen == strategy.experience.current_experience).sum()
            self.inferred += len(chosen)

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Reads the counts, once a task."""
        task = strategy.experience.current_experience
        self.accuracies[task] = int(self.correct) / self.total
        counts = enumerate(zip(*self.of_class.tolist(), strict=True))
        self.by_class[task] = {label: right / seen for label, (right, seen) in counts if seen}
        if self.inferred:
            self.recognised[task] = int(self.own_task) / self.inferred


class NoMetrics(EvaluationPlugin):
    """Avalanche's evaluator with nothing to evaluate: our own meters measure, and its events cost nothing.

    Avalanche copies the experience at every event of every step to protect it from metrics; there are none here.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are no loggers is the point
            super().__init__()

    def nothing(self, strategy: Any, **kwargs: Any) -> None:
        """Takes any event."""

    before_training_iteration = before_forward = after_forward = before_backward = after_backward = nothing
    before_update = after_update = after_training_iteration = nothing
    before_eval_iteration = before_eval_forward = after_eval_forward = after_eval_iteration = nothing
