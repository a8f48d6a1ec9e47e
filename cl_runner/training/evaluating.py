"""Avalanche's evaluation loop with Avalanche's events, without what it repeats for every experience."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from avalanche.models.dynamic_modules import DynamicModule
from avalanche.training.plugins.clock import Clock
from torch import Tensor, nn

from cl_runner.backbones.routing import TaskNetwork
from cl_runner.training.events import EVALUATION_EVENTS
from cl_runner.training.meter import Meter
from cl_runner.training.plugin import AdapterPlugin

REPLACED = (
    "eval", "_before_eval", "_before_eval_exp", "_eval_exp", "eval_epoch", "_after_eval_exp", "_after_eval",
    "_save_train_state", "_load_train_state", "_eval_cleanup",
)  # fmt: skip
"""Methods of Avalanche's that this loop stands for; a strategy with one of its own keeps Avalanche's loop."""
WRITTEN_FOR = ("avalanche.training.templates.", "cl_runner.training.")
KNOWN = ("avalanche.", "cl_runner.")
PLAIN = ("torch.nn.", "cl_runner.")  # modules that keep nothing of what they compute at evaluation


class EvaluationMixin:
    """Evaluates experiences as Avalanche does, event by event.

    For every experience Avalanche walks through all modules of the network twice, to adapt them and to move them to the
    device, and copies the experience at every event for metrics that may not exist. Here that is done once an
    evaluation, and only for those who act. Weights are merged for a task (`Merging`), and the network answers in
    inference mode; where a plugin from outside acts at evaluation, without gradients only, as it may keep what it sees
    and need it in training.
    """

    def eval(self, experiences: Any, **kwargs: Any) -> Any:
        """Evaluates one experience or several; returns the last value of each of the evaluator's metrics."""
        strategy: Any = self
        if not loops_here(type(self)):
            return super().eval(experiences, **kwargs)  # type: ignore[misc]
        stream = experiences if isinstance(experiences, Iterable) else [experiences]
        fire = strategy.events.fire
        with torch.no_grad(), self._evaluating():
            strategy.current_eval_stream = stream
            fire("before_eval", **kwargs)
            for strategy.experience in stream:
                self._begin_experience(**kwargs)
                self._answer(**kwargs)
                fire("after_eval_exp", **kwargs)
                strategy.timer.mark("metrics")
            fire("after_eval", **kwargs)
        return strategy.evaluator.get_last_metrics()

    def _answer(self, **kwargs: Any) -> None:
        """The batches of an experience."""
        strategy: Any = self
        fire, mark, wanted = strategy.events.fire, strategy.timer.mark, needs_loss(strategy)
        answering = torch.inference_mode if not from_outside(strategy) else nullcontext
        batches = strategy.dataloader
        for strategy.mbatch in batches:
            strategy._unpack_minibatch()
            mark("data")
            fire("before_eval_iteration", **kwargs)
            fire("before_eval_forward", **kwargs)
            with answering():
                strategy.mb_output = strategy.forward()
            mark("forward")
            fire("after_eval_forward", **kwargs)
            if wanted:
                strategy.loss = strategy.criterion()
            fire("after_eval_iteration", **kwargs)
            mark("metrics")

    def _begin_experience(self, **kwargs: Any) -> None:
        strategy: Any = self
        fire = strategy.events.fire
        fire("before_eval_dataset_adaptation", **kwargs)
        strategy.eval_dataset_adaptation(**kwargs)
        fire("after_eval_dataset_adaptation", **kwargs)
        strategy.make_eval_dataloader(**kwargs)
        if self._adapting:
            strategy.model = strategy.model_adaptation()
        fire("before_eval_exp", **kwargs)
        self._merging.of_task(len(strategy.dataloader))
        strategy.timer.mark("hooks")

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode and merged weights, both undone however the body ends; where training goes on, it goes on."""
        strategy: Any = self
        model: nn.Module = strategy.model
        before = {name: getattr(strategy, name) for name in ("experience", "is_training", "adapted_dataset")}
        before["dataloader"] = strategy.dataloader
        modes = [(module, module.training) for module in model.modules()]
        self._adapting = any(isinstance(module, DynamicModule) for module, _ in modes if module is not model)
        plugins = (item for item in strategy.plugins if isinstance(item, AdapterPlugin))
        self._merging = Merging(next((item.network for item in plugins), None))
        strategy.is_training = False
        model.eval()
        if any(item.device.type != strategy.device.type for item in model.parameters()):
            model.to(strategy.device)
        strategy.events.refresh()
        try:
            yield
        finally:
            self._merging.end()
            for module, training in modes:
                module.training = training
            release(module for module, _ in modes)
            strategy._eval_cleanup()
            for name, value in before.items():
                setattr(strategy, name, value)


class Merging:
    """Puts the deltas of the task that is evaluated into the weights, and takes them out again.

    A convolution otherwise forms W + DeltaW at every batch, and a language model multiplies by the factors at every
    token that it generates. Not where the network asks several sets about each batch to infer its task, nor where the
    deltas have more bits than the weights. A task with a set of its own and a single batch gains nothing.

    Args:
        network: whose adapter it is; None: there is nothing to merge.
    """

    def __init__(self, network: TaskNetwork | None) -> None:
        self.network: TaskNetwork | None = None
        if network is not None and network.adapter is not None and (network.inference is None or network.task_given):
            self.network = network

    def of_task(self, batches: int) -> None:
        """Merges what is active, where it pays; `batches` are those of the task."""
        network = self.network
        if network is None or (batches < 2 and network.per_task and not network.reads_text):
            return
        if network.adapter.may_merge(halved=network.precision != "float32"):
            with torch.no_grad(), network.autocast(network.anchor.device):  # as the layers would
                network.adapter.merge()

    def end(self) -> None:
        """Puts the weights back, bit for bit."""
        if self.network is not None:
            self.network.adapter.unmerge()


def loops_here(kind: type) -> bool:
    """Whether a strategy class leaves evaluation as Avalanche's templates have it, so that this loop may stand in."""
    return not any(
        name in vars(base) for base in kind.__mro__ for name in REPLACED if not base.__module__.startswith(WRITTEN_FOR)
    )


def needs_loss(strategy: Any) -> bool:
    """Whether somebody may read a batch's loss: anyone who acts after a batch but our meters and Avalanche's clock."""
    acting = (plugin for name in EVALUATION_EVENTS[-3:] for plugin in strategy.events.acting(name))
    return any(not isinstance(plugin, Meter | Clock) for plugin in acting)


def from_outside(strategy: Any) -> bool:
    """Whether a plugin that is neither ours nor Avalanche's acts at evaluation, or a metric."""
    acting = {type(plugin) for name in EVALUATION_EVENTS for plugin in strategy.events.acting(name)}
    return any(not kind.__module__.startswith(KNOWN) for kind in acting)


def release(modules: Iterable[nn.Module]) -> None:
    """Turns what foreign modules made in inference mode and keep (a mask, a table of positions) into usual tensors.

    Autograd refuses inference tensors, and the first training step after an evaluation would fail. Looked at are
    buffers, attributes, and the lists and dictionaries among these.
    """
    for module in modules:
        if not type(module).__module__.startswith(PLAIN):
            for owner in (module._buffers, vars(module)):
                for name, value in owner.items():
                    if (name[0] != "_" or owner is module._buffers) and _made_in_inference(value):
                        owner[name] = _usual(value)


def _made_in_inference(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_inference()
    if type(value) in (list, tuple):
        return any(map(_made_in_inference, value))
    return type(value) is dict and any(map(_made_in_inference, value.values()))


def _usual(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: _usual(item) for key, item in value.items()}
    return type(value)(map(_usual, value)) if isinstance(value, list | tuple) else value
