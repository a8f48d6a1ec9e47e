"""What strategies remember, as plain numbers, tensors and ids of samples, and back.

A memory is carried from one task to the next; what is gathered within a task is in `courses.py`. Our own plugins say
theirs with methods (`memory`, `remember`); for Avalanche's it is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any, Protocol

import torch
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.benchmarks.utils.data_attribute import TensorDataAttribute
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.core import BasePlugin
from avalanche.training.losses import ICaRLLossPlugin
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    GEMPlugin,
    ReplayPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.plugins.clock import Clock
from avalanche.training.storage_policy import BalancedExemplarsBuffer, ReservoirSamplingBuffer
from avalanche.training.supervised.icarl import _ICaRLPlugin
from avalanche.training.templates.base_sgd import PeriodicEval
from avalanche.training.utils import ParamData
from torch import Tensor

from cl_runner.strategies.avalanche_classes import LaneCumulative, LaneDER, LaneICaRL, LaneJoint
from cl_runner.strategies.restartable import LaneAGEM, LaneLwF

State = dict[str, Any]
NOTHING = (EvaluationPlugin, PeriodicEval, Clock)  # what these count is kept elsewhere, or is nothing
COUNTS = (
    "train_iterations", "train_exp_counter", "train_exp_epochs", "train_exp_iterations", "train_epoch_iterations",
)  # fmt: skip


class Samples(Protocol):
    """The samples of the stream, by their ids."""

    def ids(self, dataset: Any) -> list[int]:
        """The ids of a dataset's samples, in order."""

    def dataset(self, ids: Sequence[int]) -> Any:
        """A dataset of these samples, in order."""


class CannotBeKept(Exception):  # noqa: N818, it is no error of the run
    """Part of a strategy says nothing of what it remembers."""


def memories(strategy: Any, samples: Samples) -> list[State]:
    """What a strategy carries to the next task, part by part.

    Raises:
        CannotBeKept: a plugin of a user's own has no `memory`.
    """
    return [counts_of(strategy), *(memory_of(part, samples) for part in (strategy, *strategy.plugins))]


def remember_all(strategy: Any, states: Sequence[State], samples: Samples, experiences: Sequence[Any]) -> None:
    """Gives a fresh strategy what `memories` took; ``experiences`` are those it has learned.

    Raises:
        LookupError: it has other parts than that one had.
    """
    counts, *rest = states
    if len(rest) != 1 + len(strategy.plugins):
        raise LookupError(f"its strategy had {len(rest) - 1} plugins, and has {len(strategy.plugins)}")
    set_counts(strategy, counts)
    if isinstance(strategy, LaneCumulative):  # goes through what it has seen once more
        for strategy.experience in experiences:
            strategy.train_dataset_adaptation()
    for part, state in zip((strategy, *strategy.plugins), rest, strict=True):
        remember(part, state, samples)
    if isinstance(strategy, LaneICaRL):
        (icarl,) = (part for part in strategy.plugins if isinstance(part, _ICaRLPlugin))
        if icarl.class_means:
            strategy.model.eval_classifier.replace_class_means_dict(icarl.class_means)  # type: ignore[union-attr,operator]


@singledispatch
def memory_of(part: Any, samples: Samples) -> State:
    """What one part carries to the next task."""
    if hasattr(part, "memory"):
        state: State = part.memory()
        return state
    if isinstance(part, NOTHING) or not isinstance(part, BasePlugin):
        return {}
    if type(part).__module__.startswith("cl_runner."):
        return {}
    raise CannotBeKept(f"{type(part).__name__} has no method `memory`")


@singledispatch
def remember(part: Any, state: State, samples: Samples) -> None:
    """Gives one part its memory."""
    if hasattr(part, "remember"):
        part.remember(state)


@memory_of.register
def _(part: EWCPlugin, samples: Samples) -> State:
    return {"weights": _by_task(part.saved_params), "importances": _by_task(part.importances)}


@remember.register
def _(part: EWCPlugin, state: State, samples: Samples) -> None:
    for mine, kept in ((part.saved_params, state["weights"]), (part.importances, state["importances"])):
        for task, weights in kept.items():
            mine[task] = as_data(weights)


@memory_of.register
def _(part: SynapticIntelligencePlugin, samples: Samples) -> State:
    return {
        "ewc": [as_tensors(data) for data in part.ewc_data],
        "syn": {name: as_tensors(data) for name, data in part.syn_data.items()},
    }


@remember.register
def _(part: SynapticIntelligencePlugin, state: State, samples: Samples) -> None:
    part.ewc_data = tuple(as_data(weights) for weights in state["ewc"])  # type: ignore[assignment]
    part.syn_data = {name: as_data(weights) for name, weights in state["syn"].items()}  # type: ignore[misc]


@memory_of.register
def _(part: LaneLwF, samples: Samples) -> State:
    classes = {task: sorted(known) for task, known in part.lwf.prev_classes_by_task.items()}
    return {"tasks": part.lwf.expcount, "classes": classes}


@remember.register
def _(part: LaneLwF, state: State, samples: Samples) -> None:
    part.lwf.expcount = state["tasks"]
    part.lwf.prev_classes_by_task.update({task: set(known) for task, known in state["classes"].items()})


@memory_of.register
def _(part: GEMPlugin, samples: Samples) -> State:
    return {"x": part.memory_x, "y": part.memory_y, "task": part.memory_tid}


@remember.register
def _(part: GEMPlugin, state: State, samples: Samples) -> None:
    part.memory_x, part.memory_y, part.memory_tid = state["x"], state["y"], state["task"]


@memory_of.register
def _(part: LaneAGEM, samples: Samples) -> State:
    return {"buffers": [samples.ids(buffer) for buffer in part.buffers]}


@remember.register
def _(part: LaneAGEM, state: State, samples: Samples) -> None:
    part.buffers = [samples.dataset(ids) for ids in state["buffers"]]


@memory_of.register
def _(part: ReplayPlugin, samples: Samples) -> State:
    return _groups(part.storage_policy, samples) | {"tasks": part.storage_policy._num_exps}


@remember.register
def _(part: ReplayPlugin, state: State, samples: Samples) -> None:
    _fill(part.storage_policy, state, samples)
    part.storage_policy._num_exps = state["tasks"]


@memory_of.register
def _(part: LaneDER, samples: Samples) -> State:
    policy = part.storage_policy
    logits = {
        name: torch.stack([item[-1] for item in group.buffer])
        for name, group in policy.buffer_groups.items()
        if len(group.buffer)
    }
    return _groups(policy, samples) | {"classes": list(policy.seen_classes), "logits": logits}


@remember.register
def _(part: LaneDER, state: State, samples: Samples) -> None:
    _fill(part.storage_policy, state, samples)
    part.storage_policy.seen_classes.update(state["classes"])
    for name, group in part.storage_policy.buffer_groups.items():
        rows = FlatData([list(state["logits"].get(name, ()))], discard_elements_not_in_indices=True)
        attribute = TensorDataAttribute(rows, name="logits", use_in_getitem=True)
        group.buffer = make_avalanche_dataset(group.buffer, data_attributes=[attribute])


@memory_of.register
def _(part: _ICaRLPlugin, samples: Samples) -> State:
    names = ("x_memory", "y_memory", "order", "observed_classes", "class_means")
    return {name: getattr(part, name) for name in names} | sizes(part)


@remember.register
def _(part: _ICaRLPlugin, state: State, samples: Samples) -> None:
    for name, value in state.items():
        setattr(part, name, value)


@memory_of.register
def _(part: ICaRLLossPlugin, samples: Samples) -> State:
    return {"classes": list(part.old_classes)}


@remember.register
def _(part: ICaRLLossPlugin, state: State, samples: Samples) -> None:
    part.old_classes = list(state["classes"])


@memory_of.register(LaneJoint)
@memory_of.register(LaneCumulative)
def _(part: Any, samples: Samples) -> State:
    return {}


def counts_of(strategy: Any) -> dict[str, int]:
    """What Avalanche's clock has counted."""
    return {name: getattr(strategy.clock, name) for name in COUNTS}


def set_counts(strategy: Any, counts: dict[str, int]) -> None:
    """Sets Avalanche's clock."""
    for name, value in counts.items():
        setattr(strategy.clock, name, value)


def sizes(part: _ICaRLPlugin) -> State:
    """What iCaRL finds out at its very first step, by a forward pass that moves running statistics."""
    shape = None if part.input_size is None else list(part.input_size)
    return {"input_size": shape, "embedding_size": part.embedding_size, "output_size": part.output_size}


def _by_task(by_task: Any) -> dict[int, dict[str, Tensor]]:
    return {task: as_tensors(weights) for task, weights in by_task.items()}


def as_tensors(weights: Any) -> dict[str, Tensor]:
    """Avalanche's data of weights, as tensors."""
    return {name: item.data for name, item in weights.items()}


def as_data(weights: dict[str, Tensor]) -> dict[str, ParamData]:
    """Tensors as Avalanche's data of weights."""
    return {name: ParamData(name, init_tensor=item, device=item.device) for name, item in weights.items()}


def _groups(policy: BalancedExemplarsBuffer, samples: Samples) -> State:
    """The stored samples by group: their ids, the weights by which a reservoir chose them, and its size."""
    return {
        "groups": {
            name: [samples.ids(group.buffer), group._buffer_weights, group.max_size]
            for name, group in policy.buffer_groups.items()
        }
    }


def _fill(policy: BalancedExemplarsBuffer, state: State, samples: Samples) -> None:
    for name, (ids, weights, size) in state["groups"].items():
        group = ReservoirSamplingBuffer(size)
        group.buffer, group._buffer_weights = samples.dataset(ids), weights
        policy.buffer_groups[name] = group
