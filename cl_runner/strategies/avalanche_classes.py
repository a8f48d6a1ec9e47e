"""Avalanche's strategies and plugins in the form in which they run here: on the lane, and with what they lack.

Recipes import this module only when a strategy is built, so that a request can be checked without Avalanche.
"""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SynapticIntelligencePlugin
from avalanche.training.supervised import DER, Cumulative, ICaRL, JointTraining
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import ParamData
from torch import Tensor, nn

from cl_runner.backbones.network import Network
from cl_runner.training.strategy import LaneMixin


class LaneStrategy(LaneMixin, SupervisedTemplate):
    """Plain training on the current task, to which plugins add their method."""


class LaneCumulative(LaneMixin, Cumulative):
    """Avalanche's cumulative training on the lane."""


class LaneJoint(LaneMixin, JointTraining):
    """Avalanche's joint training on the lane."""


class LaneDER(LaneMixin, DER):
    """Avalanche's DER on the lane.

    As published, training sees the logits of all classes and no task identity: stored logits are matched class by
    class, which masked ones could not be. With task labels, the other tasks' classes are masked at evaluation.
    """

    def forward(self) -> Tensor:
        """Plain logits over all classes."""
        return self.model(self.mb_x)

    def _unpack_minibatch(self) -> None:
        batch: Any = self.mbatch  # type: ignore[has-type]
        self.mbatch = [item.to(self.device) for item in batch]  # DER joins its memory's task labels there


class LaneICaRL(LaneMixin, ICaRL):
    """Avalanche's iCaRL on the lane."""

    def _after_training_exp(self, **kwargs: Any) -> None:
        """Lets the loss copy its teacher afresh: an adapter's first set has no place in the copy of an earlier task."""
        self._criterion.old_model = None
        super()._after_training_exp(**kwargs)


class Features(nn.Module):
    """What a network's classifier is given, without taking the network apart.

    Shapes: (B, C, H, W) to (B, d), float32.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The features of a batch."""
        return self.network.features(x)


class OwningSIPlugin(SynapticIntelligencePlugin):
    """Avalanche's synaptic intelligence with copies of the weights.

    On the CPU Avalanche keeps views of the weights "before", which the optimiser then changes: every difference, and
    with it every importance and the whole penalty, would be zero.
    """

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Copies the weights that the penalty holds on to."""
        super().before_training_exp(strategy, **kwargs)
        _own(self.ewc_data[0])

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Copies the weights before a step."""
        super().before_training_iteration(strategy, **kwargs)
        _own(self.syn_data["old_theta"])


def _own(weights: dict[str, ParamData]) -> None:
    for item in weights.values():
        item.data = item.data.clone()
