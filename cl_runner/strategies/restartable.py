"""Avalanche's plugins in a form in which a run can be taken up again at any step.

What a plugin can derive from the network when a task begins, it derives then and does not keep; what it draws, it draws
from a seed of its own.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader
from avalanche.training.plugins import AGEMPlugin, LwFPlugin
from avalanche.training.regularization import LearningWithoutForgetting
from torch import Tensor

from cl_runner.training.draws import Draws


class LaneLwF(LwFPlugin):
    """Avalanche's LwF with the teacher taken when a task begins, which is the network as the one before left it."""

    def __init__(self, alpha: float, temperature: float) -> None:
        super().__init__(alpha=alpha, temperature=temperature)
        self.lwf = InClassOrder(alpha, temperature)

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Copies the network."""
        if self.lwf.expcount:
            self.lwf.prev_model = copy.deepcopy(strategy.model)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Takes note of the classes learned."""
        self.lwf.post_adapt(SimpleNamespace(model=None), strategy.experience)


class InClassOrder(LearningWithoutForgetting):
    """Avalanche's distillation with classes in their order, where a set has them in whatever order it grew up with."""

    def _distillation_loss(self, out: Tensor, prev_out: Tensor, active_units: Any) -> Any:
        return super()._distillation_loss(out, prev_out, sorted(active_units))


class LaneAGEM(AGEMPlugin):
    """Avalanche's A-GEM that samples its memory afresh in every task, with draws of its own."""

    buffer_dliter: Draws

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Lays out the samples of the task."""
        if self.buffers:
            loader = GroupBalancedInfiniteDataLoader(
                self.buffers, batch_size=self.sample_size // len(self.buffers), num_workers=0, pin_memory=False
            )
            self.buffer_dliter = Draws(lambda: loader, strategy.lane.generator)


class InOrder(dict[int, None]):
    """A set of classes that goes through them in the order in which they came."""

    def update(self, classes: Any) -> None:  # type: ignore[override]
        """Adds classes."""
        super().update(dict.fromkeys(classes))
