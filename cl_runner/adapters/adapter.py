"""The contract of an adapter: attach to a network, live through its tasks, account for what it stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cl_runner.adapters.placement import Placement


@dataclass(frozen=True)
class LayerReport:
    """One adapted layer under one task, a row of `layers.csv`.

    Attributes:
        name: the layer's name in the network.
        kind: conv, linear, or full for a module trained in full.
        shape: of its weight.
        rank: the rank that is kept; None for a module trained in full.
        parameters: what the task stores for this layer.
        delta_norm: ||DeltaW||_F, where only the adapter can still tell it; None: measure `delta_weight`.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    rank: int | None
    parameters: int
    delta_norm: float | None = None


@dataclass(frozen=True)
class ParameterReport:
    """What an adapter stores for the tasks seen so far, in numbers.

    Attributes:
        adapter: factors, and copies of modules trained in full.
        normalisation: affine parameters of BatchNorm copies.
        buffers: running means and variances of BatchNorm copies; reported, not part of the stored parameters.
    """

    adapter: int = 0
    normalisation: int = 0
    buffers: int = 0


class Adapter(ABC):
    """A way of learning tasks one after another inside a given network.

    The life of an adapter: `attach` once; for every task `begin_task`; `begin_epoch` before every epoch; per step
    `before_step`, `penalty` before the backward pass and `after_step` after the update; then `end_task`. `activate`
    comes before anything is computed for a task.

    Attributes:
        per_task: whether a set of its own is kept for every task, so that the forward pass needs to know the task.
        task_inference: how a sample's task is found where a set per task is kept and no labels of tasks are given.
        eval_ranks: ranks at which the trained network is evaluated once more, for the rank curve.
        eval_ranks_at: last (after the last task) or every_task.
        resizes: whether parameters change their shape while they train.
        keeps_last: whether a task must end with its last weights: its training has a course of its own, which going
            back to the epoch with the best validation loss, or stopping early, would undo.
        takes_text: whether it can adapt a language model.
        renews: whether every task trains new parameters, those before it being part of the weights by then.
        acts_from_set: the first set, from 1, at which the method differs from its base class.
    """

    per_task: bool = False
    task_inference: str = "auto"
    eval_ranks: Sequence[int] = ()
    eval_ranks_at: str = "last"
    resizes: bool = False
    keeps_last: bool = False
    takes_text: bool = True
    renews: bool = False
    acts_from_set: int = 1
    model: nn.Module

    @property
    def steady(self) -> bool:
        """Whether forward pass and penalty are the same operations at every step of an epoch, so that they can be
        recorded once; by default of adapters that do nothing before a step.
        """
        return type(self).before_step is Adapter.before_step

    @property
    def label(self) -> str:
        """What the adapter is called in summaries and messages: `called` of its own class, else the class's name."""
        return str(vars(type(self)).get("called") or type(self).__name__.lower())

    @abstractmethod
    def attach(self, model: nn.Module, placement: Placement | str = "all") -> None:
        """Puts the adapter on the chosen layers; the network's output does not change.

        Raises:
            RequestError: nothing matches, or the rank exceeds every chosen layer.
        """

    @abstractmethod
    def begin_task(self, tasks: int | Sequence[int]) -> None:
        """Decides what trains from now on; several tasks at once for joint training."""

    def begin_epoch(self, epoch: int) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Called before every epoch of a task, from 0; returns (old, new) of every parameter that was replaced.

        The optimiser goes on with the new ones, of which it knows nothing yet.
        """
        return []

    def before_step(self, progress: float) -> None:
        """Acts before the forward pass of a step; ``progress`` is the share of the task's steps done."""

    def penalty(self) -> Tensor | None:
        """A term to add to the loss of this step, or None."""
        return None

    def after_step(self, progress: float) -> None:
        """Acts on the parameters after an optimiser step; ``progress`` is the share of the task's steps done."""

    def end_task(self) -> None:
        """Closes the task that was being trained."""

    def activate(self, task: int) -> None:
        """Computes for this task from now on."""

    def memory(self) -> dict[str, Any]:
        """What it carries from task to task besides the network's parameters and buffers, for a checkpoint.

        Numbers, words, tensors, and lists and dictionaries of these.
        """
        return {}

    def remember(self, memory: dict[str, Any]) -> None:
        """Takes back what `memory` gave, in a fresh adapter for which the tasks since then have begun and ended."""

    def course(self) -> dict[str, Any]:
        """What of it has changed since the task began, for a checkpoint within the task; by default all of `memory`."""
        return self.memory()

    def take_up(self, course: dict[str, Any]) -> None:
        """Takes back what `course` gave, in an adapter that has begun the task."""
        self.remember(course)

    def adapted_layers(self) -> list[str]:
        """Names of the layers that have a delta."""
        return []

    def delta_weight(self, layer: str) -> Tensor:
        """DeltaW of a layer under the active task, in the shape of its weight.

        Raises:
            KeyError: the layer is not adapted.
        """
        raise KeyError(layer)

    def merge(self) -> None:
        """Adds the active task's deltas to the weights themselves."""

    def unmerge(self) -> None:
        """Takes them out again."""

    def may_merge(self, *, halved: bool = False) -> bool:
        """Whether merged weights give the answers of the active deltas, and `unmerge` then every bit of W back.

        Evaluation merges where it may: a network then forms W + DeltaW once a task, and not at every batch.

        Args:
            halved: products are computed in half precision, in which a small delta beside W would be lost.
        """
        return False

    def owned(self, task: int) -> Iterable[nn.Module | Tensor]:
        """Modules and tensors that belong to one task alone: no other task's answers depend on them.

        What nobody owns counts for all tasks: where nothing is named here, any change is a change of every task.
        """
        return ()

    def kept_rank(self) -> int | None:
        """The largest rank that any set still has; None where there are no ranks."""
        return None

    def truncate(self, rank: int | None) -> None:
        """Evaluates with the first ``rank`` components of every delta from now on; None: with those configured."""

    def drift(self) -> float | None:
        """||theta - theta_0||_F over the weights of the adapted layers; None where it is not defined.

        theta_0 are the weights over which the first adapter starts: those at the start where the base is frozen, those
        after the first task where it is trained there.
        """
        return None

    def figures(self) -> dict[str, float]:
        """Further figures of the method after a task, by name; columns of `parameters.csv`."""
        return {}

    def parameter_report(self) -> ParameterReport:
        """What is stored for the tasks seen so far."""
        return ParameterReport()

    def layer_report(self, task: int) -> list[LayerReport]:
        """What is stored for one task, layer by layer."""
        return []

    @property
    def warnings(self) -> list[str]:
        """What the user should know about this attachment."""
        return []


def as_tasks(tasks: int | Sequence[int]) -> tuple[int, ...]:
    """One task or several, as a tuple."""
    return (tasks,) if isinstance(tasks, int) else tuple(tasks)
