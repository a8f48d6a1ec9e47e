"""An adapter and a strategy of a user's own, for tests."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from cl_runner.adapters.adapter import Adapter, as_tasks
from cl_runner.strategies.strategy import Strategy


class Offsets(Adapter):
    """Adds a vector to the answers, one a task; all that it knows is in a module of the network."""

    def attach(self, model: nn.Module, placement: Any = "all") -> None:
        """Gives the network room for them."""
        self.model, model.offsets = model, nn.ParameterDict()
        model.backbone.register_forward_hook(lambda module, given, logits: logits + model.offsets[str(self.task)])
        self.begin_task(0)

    def begin_task(self, tasks: Any) -> None:
        """Draws the task's."""
        self.task = as_tasks(tasks)[-1]
        offsets = self.model.offsets
        if str(self.task) not in offsets:
            offsets[str(self.task)] = nn.Parameter(torch.randn(10))


class Fading(Offsets):
    """Pulls the vectors to zero, less with every step that it has counted."""

    seen = 0

    def penalty(self) -> torch.Tensor:
        """Fades with the steps."""
        return sum(item.square().sum() for item in self.model.offsets.values()) / (1 + self.seen)

    def after_step(self, progress: float) -> None:
        """Counts."""
        self.seen += 1

    def figures(self) -> dict[str, float]:
        """Says how many there were."""
        return {"seen": self.seen}

    def memory(self) -> dict[str, Any]:
        """The count."""
        return {"seen": self.seen}

    def remember(self, memory: dict[str, Any]) -> None:
        """Takes it back."""
        self.seen = memory["seen"]


class Decay(SupervisedPlugin):
    """Scales the loss by what it has counted."""

    tasks = steps = 0

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Scales it."""
        self.steps += 1
        strategy.loss *= 1 / (1 + self.tasks + 0.1 * self.steps)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Counts the task."""
        self.tasks, self.steps = self.tasks + 1, 0


class TellingDecay(Decay):
    """The same, with what a checkpoint asks for."""

    def memory(self) -> dict[str, Any]:
        """From task to task."""
        return {"tasks": self.tasks}

    def remember(self, memory: dict[str, Any]) -> None:
        """Takes it back."""
        self.tasks = memory["tasks"]

    def course(self) -> dict[str, Any]:
        """Within a task."""
        return {"steps": self.steps}

    def take_up(self, course: dict[str, Any]) -> None:
        """Goes on."""
        self.steps = course["steps"]


class Decaying(Strategy):
    """Every task and every step counts for less."""

    def __init__(self, *, tells: bool = True) -> None:
        self.tells = tells

    def plugins(self, workshop: Any) -> list[Any]:
        """What scales the loss."""
        return [TellingDecay() if self.tells else Decay()]
