"""Averages in the space of weights: between two models, and along a run."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """What training changes and an average of models is taken over: open parameters and running statistics."""
    found: dict[str, Tensor] = {name: item for name, item in model.named_parameters() if item.requires_grad}
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            found |= {f"{name}.running_mean": module.running_mean, f"{name}.running_var": module.running_var}
    return found


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, apart from the model."""
    return {name: item.detach().clone() for name, item in weights.items()}


@torch.no_grad()
def write(weights: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Puts values into a model's weights; in place, so that whoever watches their versions notices."""
    for name, item in weights.items():
        item.copy_(values[name])


class Interpolation(SupervisedPlugin):
    """theta <- (1 - alpha) theta_ref + alpha theta at the end of every task, once the best epoch's weights are back.

    Args:
        alpha: weight of the trained model.
        previous: the reference is the model at the start of the task; else that before the first one.
    """

    def __init__(self, alpha: float, *, previous: bool) -> None:
        super().__init__()
        self.alpha, self.previous = alpha, previous
        self.reference: dict[str, Tensor] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Keeps the reference."""
        if self.previous or not self.reference:
            self.reference = copied(trained_weights(strategy.model))

    def memory(self) -> dict[str, Any]:
        """The model before the first task, where that is the reference."""
        return {"reference": {} if self.previous else self.reference}

    def remember(self, memory: dict[str, Any]) -> None:
        """Takes the reference back."""
        self.reference = memory["reference"]

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Goes back towards it."""
        weights = trained_weights(strategy.model)
        write(weights, {name: torch.lerp(self.reference[name], item, self.alpha) for name, item in weights.items()})


class RunningAverage(SupervisedPlugin):
    """theta_bar_k = (k theta_bar_{k-1} + theta) / (k + 1), every so many iterations; a task ends with theta_bar.

    theta_bar_0 is the model at the start of the task. A task shorter than the interval counts its end once.

    Args:
        every: iterations between two models that are averaged.
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Starts with the model as it is."""
        self.mean = copied(trained_weights(strategy.model))
        self.models, self.steps = 1, 0

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Counts the model in where it is time."""
        self.steps += 1
        if self.steps % self.every == 0:
            self._count_in(strategy.model)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Ends the task with the average."""
        if self.models == 1:
            self._count_in(strategy.model)
        write(trained_weights(strategy.model), self.mean)
        self.mean = {}

    def course(self) -> dict[str, Any]:
        """The average so far, and how much is in it."""
        return {"mean": self.mean, "models": self.models, "steps": self.steps}

    def take_up(self, course: dict[str, Any]) -> None:
        """Goes on averaging."""
        self.mean, self.models, self.steps = course["mean"], course["models"], course["steps"]

    @torch.no_grad()
    def _count_in(self, model: nn.Module) -> None:
        self.models += 1
        for name, item in trained_weights(model).items():
            self.mean[name].lerp_(item, 1 / self.models)


class Consistency(SupervisedPlugin):
    """Adds weight * sum_i (theta_i - theta_i at the start of the task)^2 over the open parameters to the loss.

    Args:
        weight: of the penalty.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Keeps the weights as they are."""
        self.start = [(item, item.detach().clone()) for item in strategy.model.parameters() if item.requires_grad]

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Adds the penalty."""
        strategy.loss += self.weight * torch.stack([(item - start).pow(2).sum() for item, start in self.start]).sum()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Lets the copies go."""
        self.start = []
