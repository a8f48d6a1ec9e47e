"""What is watched while a strategy trains: loss, validation, learning rate, early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

from cl_runner.benchmarks.store import Part
from cl_runner.training.guard import DivergedError
from cl_runner.training.schedules import Constant

SUM_EVERY = 256  # steps whose losses wait on the device to be read together


class Listener(Protocol):
    """Who is told about progress (the recorder)."""

    def task_started(self, index: int, name: str, epochs: int, batches: int) -> None:
        """A task begins; ``index`` counts from 1."""

    def batch(self, n_images: int) -> None:
        """A training step is done."""

    def steps(self, task: int, epoch: int, losses: Sequence[tuple[int, float]]) -> None:
        """The losses of some steps of an epoch, each with its number in the epoch, from 1."""

    def step_skipped(self, task: int, epoch: int, step: int, samples: Sequence[int]) -> None:
        """A step was not learned from, as its loss was no finite number."""

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
        log_every: every so-manieth step's loss is told to the listener; None: none.
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
        log_every: int | None = None,
    ) -> None:
        super().__init__()
        self.listener, self.schedule = listener, schedule
        self.totals, self.amount = totals, amount
        self.validation, self.names = validation, names
        self.patience, self.restore_best, self.revisits = patience, restore_best, revisits
        self.log_every = log_every
        self.task = 0
        self.epoch = 0
        self.best_epoch: int | None = None
        self.images = 0
        self.training_seconds = 0.0
        self.step = 0
        self.losses: list[tuple[int, Tensor]] = []
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
        self.loss_sum, self.loss_weight = 0.0, 0
        self._unsummed: list[tuple[Tensor, Any]] = []
        self.epoch_images = self.step = 0

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Keeps the loss, on the device; nothing here waits for it."""
        targets = strategy.mbatch[1]
        n_images = len(targets)
        self._unsummed.append((strategy.loss.detach(), self.amount(targets)))
        if len(self._unsummed) >= SUM_EVERY:
            self._sum()
        self.epoch_images += n_images
        self.schedule.after_step()
        self.step += 1
        if self.log_every is not None and self.step % self.log_every == 0:
            self.losses.append((self.step, strategy.loss.detach()))
        self.listener.batch(n_images)

    def _sum(self) -> None:
        """Reads the losses since the last time from the device, and adds them up one by one, in float64."""
        if self._unsummed:
            losses, amounts = zip(*self._unsummed, strict=True)
            values = torch.cat([loss.reshape(1) for loss in losses]).tolist()
            weights = torch.stack(amounts).tolist() if isinstance(amounts[0], Tensor) else amounts
            for value, weight in zip(values, weights, strict=True):
                self.loss_sum += value * weight
                self.loss_weight += weight
            self._unsummed.clear()

    def tell_losses(self) -> None:
        """Reads the losses of single steps from the device, and passes them on."""
        if self.losses:
            values = torch.cat([loss.reshape(1) for _, loss in self.losses]).tolist()
            numbers = [number for number, _ in self.losses]
            self.listener.steps(self.task + 1, self.epoch + 1, list(zip(numbers, values, strict=True)))
            self.losses.clear()

    def step_skipped(self, task: int, epoch: int, step: int, samples: Sequence[int]) -> None:
        """Passes on that a step was skipped, after the losses of the steps before it."""
        self.tell_losses()
        self.listener.step_skipped(task, epoch, step, samples)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Reads the sums, validates, steps the schedule and decides whether the task goes on."""
        self.tell_losses()
        strategy.guard.look(strategy)
        self._sum()
        train_loss = self.loss_sum / self.loss_weight if self.loss_weight else None  # every step was skipped
        seconds = time.perf_counter() - self.started
        self.epoch += 1
        self.images += self.epoch_images
        self.training_seconds += seconds
        self._refuse_divergence("loss", train_loss)
        with strategy.timer.apart("validation"):
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

    def totals_so_far(self) -> dict[str, Any]:
        """What a run adds up over its tasks."""
        return {"images": self.images, "training_seconds": self.training_seconds}

    def saved(self, *, in_epoch: bool) -> dict[str, Any]:
        """Where this task stands, ``in_epoch`` or between two."""
        state = self.totals_so_far() | {
            "epoch": self.epoch,
            "best": [self.best_epoch, self.best_loss, self.best_weights],
            "schedule": self.schedule.saved(),
        }
        if in_epoch:
            self._sum()
            seconds = time.perf_counter() - self.started
            state["sums"] = [self.loss_sum, self.loss_weight, self.epoch_images, self.step, seconds]
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from there; in an epoch, which has begun, or before one."""
        self.images, self.training_seconds = state["images"], state["training_seconds"]
        if "epoch" not in state:  # between two tasks
            return
        self.epoch = state["epoch"]
        self.best_epoch, self.best_loss, self.best_weights = state["best"]
        self.schedule.restore(state["schedule"])
        if "sums" in state:
            self.loss_sum, self.loss_weight, self.epoch_images, self.step, seconds = state["sums"]
            self.started = time.perf_counter() - seconds

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
            for x, labels, task_labels in strategy.unaugmented(part.ids):
                totals += self.totals(model(x, task_labels), labels)
        model.train()
        loss, accuracy = (totals[:2] / totals[2]).tolist()
        return loss, accuracy


def _moving(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What training changes: trainable parameters and buffers such as running statistics."""
    parameters = [(name, item) for name, item in model.named_parameters() if item.requires_grad]
    return parameters + [(f"buffer:{name}", item) for name, item in model.named_buffers()]
