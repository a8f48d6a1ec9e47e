"""Avalanche's strategies with the lane's loaders, a fresh, narrow optimiser for every task, and steps to be kept."""

from __future__ import annotations

from typing import Any

from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from cl_runner.benchmarks.avalanche_view import sample_ids
from cl_runner.training.evaluating import EvaluationMixin
from cl_runner.training.events import Events
from cl_runner.training.features import FeatureBank
from cl_runner.training.guard import Guard
from cl_runner.training.keeper import KeepsNothing
from cl_runner.training.lane import Lane, LaneLoader
from cl_runner.training.optimizers import OptimizerFactory
from cl_runner.training.step import Step
from cl_runner.training.timing import NoTimer


class LaneMixin(EvaluationMixin):
    """Replaces how an Avalanche strategy gets its batches and its optimiser, and lets its steps be kept and guarded.

    `equip` is called once, after Avalanche's own constructor.

    Attributes:
        keeper: told of every step and epoch; a task that was interrupted goes on where it says.
        guard: looks at the loss of every step.
        events: who acts at which of Avalanche's events.
        step: how a step is made.
        timer: is told what has just been done.
    """

    lane: Lane
    iterations: int | None
    optimizer_factory: OptimizerFactory
    reset_optimizer: bool
    bank: FeatureBank | None
    keeper: KeepsNothing
    guard: Guard
    events: Events
    step: Step
    timer: NoTimer

    def equip(
        self,
        *,
        lane: Lane,
        optimizer_factory: OptimizerFactory,
        iterations: int | None,
        reset_optimizer: bool,
        bank: FeatureBank | None = None,
        on_nan: str = "stop",
    ) -> None:
        """Gives the strategy its lane, the bank of features beside it, and its way of making optimisers."""
        self.lane, self.bank = lane, bank
        self.keeper, self.guard = KeepsNothing(), Guard(on_nan)
        self.events, self.step, self.timer = Events(self), Step(), NoTimer()
        self.optimizer_factory = optimizer_factory
        self.iterations = iterations
        self.reset_optimizer = reset_optimizer

    @property
    def trained_together(self) -> list[Any]:
        """The experiences of this training phase: the current one, or all where a strategy holds the whole stream."""
        return list(getattr(self, "_experiences", None) or [self.experience])  # type: ignore[attr-defined]

    @property
    def epoch_batches(self) -> int:
        """Batches in an epoch of this task, right also for a loader that a plugin has put here a moment ago."""
        return self.iterations if self.iterations is not None else len(self.dataloader)

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Shuffled batches of the current data; data of several tasks is balanced as Avalanche balances it."""
        dataset: Any = self.adapted_dataset  # type: ignore[attr-defined]
        ids = sample_ids(dataset)
        if ids is not None and len(dataset.targets_task_labels.uniques) == 1:
            size: int = self.train_mb_size  # type: ignore[attr-defined]
            epochs: int = self.train_epochs  # type: ignore[attr-defined]
            ready = self.bank.training(ids, size, self.iterations, epochs) if self.bank is not None else None
            self.dataloader: Any = self.lane.training(ids, size, self.iterations) if ready is None else ready
        else:
            super().make_train_dataloader(**kwargs)  # type: ignore[misc]

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        """Batches in order, not augmented."""
        ids = sample_ids(self.adapted_dataset)  # type: ignore[attr-defined]
        assert ids is not None, "evaluation data always comes from the store"
        self.dataloader = self.unaugmented(ids)

    def unaugmented(self, ids: Tensor) -> LaneLoader:
        """Batches of samples in order, as they are evaluated: features where they are kept, else images."""
        return (self.bank or self.lane).evaluation(ids, self.eval_mb_size)  # type: ignore[attr-defined]

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)  # type: ignore[misc]
        self.dataloader = self.lane.adopt(self.dataloader, self.iterations)  # a plugin may have put its own here

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Adapts the model, then makes the optimiser over what trains in this task."""
        self.model: nn.Module = self.model_adaptation()  # type: ignore[attr-defined]
        self.make_optimizer()

    def make_optimizer(self, **kwargs: Any) -> None:
        """An optimiser over the trainable parameters; its state is carried on only where they are the same."""
        trainable = []
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                trainable.append(parameter)
            else:
                parameter.grad = None  # what a closed task left there would enter EWC's importances and GEM's products
        current: Any = self.optimizer  # type: ignore[has-type]
        held = [parameter for group in current.param_groups for parameter in group["params"]]
        same = len(held) == len(trainable) and all(a is b for a, b in zip(held, trainable, strict=True))
        if self.reset_optimizer or not same:
            self.optimizer = self.optimizer_factory(trainable)

    def forward(self) -> Any:
        """The network's answer to the batch, with its task labels where the network takes them."""
        images, *_, tasks = self.mbatch  # type: ignore[attr-defined]
        return self.model(images, tasks) if isinstance(self.model, MultiTaskModule) else self.model(images)

    def _unpack_minibatch(self) -> None:
        """Nothing to move: batches arrive on the device, task labels stay on the host."""

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """The epochs of a task that are still to come."""
        strategy: Any = self
        for _ in range(self.keeper.first_epoch(self), strategy.train_epochs):
            if strategy._stop_training:  # early stopping
                break
            strategy._before_training_epoch(**kwargs)
            self.training_epoch(**kwargs)
            strategy._after_training_epoch(**kwargs)
            self.keeper.epoch_ended(self)

    def training_epoch(self, **kwargs: Any) -> None:
        """Avalanche's epoch, step by step, with a look at the loss before anything learns from it."""
        strategy: Any = self
        events, timer, learn = self.events, self.timer, self.step.learn
        events.refresh()
        self.step.begin_epoch(self)
        timer.mark("tasks")
        for strategy.mbatch in self.keeper.batches(self):
            self._unpack_minibatch()
            timer.mark("data")
            self.guard.before_step(self)
            events.fire("before_training_iteration", **kwargs)
            timer.mark("hooks")
            if learn(self):
                events.fire("after_training_iteration", **kwargs)
                timer.mark("monitor")
            self.keeper.stepped(self)
