"""What is watched while a strategy runs: loss, validation, learning rate, early stopping, accuracy."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import Tensor, nn

from cl_runner.benchmarks.store import Part
from cl_runner.training.schedules import Constant


class Listener(Protocol):
    """Who is told about progress (the recorder)."""

    def task_started(self, index: int, name: str, epochs: int, batches: int) -> None:
        """A task begins; ``index`` counts from 1."""

    def batch(self, n_images: int) -> None:
        """A training step is done."""

    def epoch_finished(
        self,
        task: int,
        epoch: int,
        epochs: int,
        train_loss: float | None,
        *,
        validation_loss: float | None = None,
        validation_accuracy: float | None = None,
        learning_rate: float | None = None,
        images: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """An epoch is done."""


class DivergedError(RuntimeError):
    """The training loss is no longer a finite number."""


class TrainingMonitor(SupervisedPlugin):
    """Follows training: mean loss per epoch, the schedule, and the validation split.

    The validation split alone decides about early stopping, plateaus and the best epoch; test data is never seen
    here. At the last epoch the weights of the best one are put back, before any other plugin looks at them.

    Args:
        listener: is told about progress.
        schedule: the learning-rate schedule.
        validation: validation part of each task, None where none was split off.
        names: of the tasks.
        patience: epochs without a better validation loss after which a task ends; None: never.
        restore_best: end a task with the weights of its best epoch.
        revisits: training goes over the data of all tasks so far, and so does validation.
        totals: (sum of the losses, right answers, answers) of (outputs, targets), as a tensor (3,).
        amount: answers among targets, the weight of a batch in a mean.
    """

    def __init__(
        self,
        *,
        listener: Listener,
        schedule: Constant,
        validation: Sequence[Part | None],
        names: Sequence[str],
        patience: int | None,
        restore_best: bool,
        totals: Callable[[Tensor, Tensor], Tensor],
        amount: Callable[[Tensor], Any] = len,
        revisits: bool = False,
    ) -> None:
        super().__init__()
        self.listener, self.schedule = listener, schedule
        self.totals, self.amount = totals, amount
        self.validation, self.names = validation, names
        self.patience, self.restore_best, self.revisits = patience, restore_best, revisits
        self.task = 0
        self.epoch = 0
        self.best_epoch: int | None = None
        self.images = 0
        self.training_seconds = 0.0
        self.when_open: Callable[[], None] | None = None  # called once a task's parameters are open

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Starts over for a task."""
        self.task = strategy.experience.current_experience
        self.epoch, self.best_epoch, self.best_loss = 0, None, math.inf
        self.best_weights: dict[str, Tensor] = {}
        if self.when_open is not None:
            self.when_open()
        self.schedule.begin(strategy.optimizer, strategy.epoch_batches * strategy.train_epochs)
        self.listener.task_started(self.task + 1, self.names[self.task], strategy.train_epochs, strategy.epoch_batches)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Starts the clock and the sums."""
        self.started = time.perf_counter()
        self.learning_rate = float(strategy.optimizer.param_groups[0]["lr"])
        self.loss_sum = torch.zeros(1, device=strategy.device)
        self.loss_weight: Any = 0
        self.epoch_images = 0

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Sums on the device; nothing here waits for it."""
        n_images = len(strategy.mb_y)
        weight = self.amount(strategy.mb_y)
        self.loss_sum += strategy.loss.detach() * weight
        self.loss_weight += weight
        self.epoch_images += n_images
        self.schedule.after_step()
        self.listener.batch(n_images)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Reads the sums, validates, steps the schedule and decides whether the task goes on."""
        train_loss = float(self.loss_sum) / max(1, int(self.loss_weight))
        seconds = time.perf_counter() - self.started
        self.epoch += 1
        self.images += self.epoch_images
        self.training_seconds += seconds
        self._refuse_divergence("loss", train_loss)
        loss, accuracy = self._validate(strategy)
        self._refuse_divergence("validation loss", loss)
        self.listener.epoch_finished(
            self.task + 1,
            self.epoch,
            strategy.train_epochs,
            train_loss,
            validation_loss=loss,
            validation_accuracy=accuracy,
            learning_rate=self.learning_rate,
            images=self.epoch_images,
            seconds=seconds,
        )
        self.schedule.after_epoch(loss)
        if loss is not None:
            self._judge(strategy, loss)

    def _refuse_divergence(self, kind: str, loss: float | None) -> None:
        if loss is not None and not math.isfinite(loss):
            raise DivergedError(
                f"the {kind} of task {self.task + 1} is {loss} in epoch {self.epoch}; try a lower optimizer.lr"
            )

    def _judge(self, strategy: Any, loss: float) -> None:
        sizes = {name: tensor.shape for name, tensor in _moving(strategy.model)} if self.best_weights else {}
        if sizes != {name: tensor.shape for name, tensor in self.best_weights.items()}:
            self.best_weights, self.best_loss = {}, math.inf  # the adapter has dropped ranks since: they no longer fit
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.epoch
            if self.restore_best:
                self.best_weights = {name: tensor.detach().clone() for name, tensor in _moving(strategy.model)}
        assert self.best_epoch is not None
        last = self.epoch == strategy.train_epochs
        if self.patience is not None and self.epoch - self.best_epoch >= self.patience and not last:
            strategy.stop_training()
            last = True
        if last and self.best_weights and self.best_epoch != self.epoch:
            with torch.no_grad():
                for name, tensor in _moving(strategy.model):
                    tensor.copy_(self.best_weights[name])

    @torch.no_grad()
    def _validate(self, strategy: Any) -> tuple[float | None, float | None]:
        together = [item.current_experience for item in strategy.trained_together]
        tasks = range(self.task + 1) if self.revisits else together
        parts = [part for part in (self.validation[task] for task in tasks) if part is not None and len(part)]
        if not parts:
            return None, None
        model = strategy.model
        model.eval()
        totals = torch.zeros(3, dtype=torch.float64, device=strategy.device)
        for part in parts:
            for x, labels, task_labels in strategy.lane.evaluation(part.ids, strategy.eval_mb_size):
                totals += self.totals(model(x, task_labels), labels)
        model.train()
        loss, accuracy = (totals[:2] / totals[2]).tolist()
        return loss, accuracy


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

    def clear(self) -> None:
        """Forgets what was measured."""
        for found in (self.accuracies, self.recognised, self.by_class, self.figures):
            found.clear()


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


def _moving(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What training changes: trainable parameters and buffers such as running statistics."""
    parameters = [(name, item) for name, item in model.named_parameters() if item.requires_grad]
    return parameters + [(f"buffer:{name}", item) for name, item in model.named_buffers()]
