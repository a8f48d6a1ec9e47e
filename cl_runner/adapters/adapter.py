"""The contract of an adapter: attach to a network, live through its tasks, account for what it stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

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
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    rank: int | None
    parameters: int


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

    The life of an adapter: `attach` once; for every task `begin_task`, then per step `penalty` before the backward
    pass and `after_step` after the update, then `end_task`; `activate` before anything is computed for a task.

    Attributes:
        per_task: whether a set of its own is kept for every task, so that the forward pass needs to know the task.
    """

    per_task: bool = False
    model: nn.Module

    @abstractmethod
    def attach(self, model: nn.Module, placement: Placement | str = "all") -> None:
        """Puts the adapter on the chosen layers; the network's output does not change.

        Raises:
            RequestError: nothing matches, or the rank exceeds every chosen layer.
        """

    @abstractmethod
    def begin_task(self, tasks: int | Sequence[int]) -> None:
        """Decides what trains from now on; several tasks at once for joint training."""

    def penalty(self) -> Tensor | None:
        """A term to add to the loss of this step, or None."""
        return None

    def after_step(self, progress: float) -> None:
        """Acts on the parameters after an optimiser step; ``progress`` is the share of the task's steps done."""

    def end_task(self) -> None:
        """Closes the task that was being trained."""

    def activate(self, task: int) -> None:
        """Computes for this task from now on."""

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
