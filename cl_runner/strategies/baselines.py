"""The bounds between which every method lies: fine-tuning below, training on everything above."""

from __future__ import annotations

from avalanche.training.supervised import Cumulative as AvalancheCumulative
from avalanche.training.supervised import JointTraining

from cl_runner.strategies.strategy import Strategy
from cl_runner.training.strategy import LaneMixin


class LaneCumulative(LaneMixin, AvalancheCumulative):
    """Avalanche's cumulative training on the lane."""


class LaneJoint(LaneMixin, JointTraining):
    """Avalanche's joint training on the lane."""


class Naive(Strategy):
    """Fine-tuning on each task in turn, with nothing against forgetting but the adapter."""


class Cumulative(Strategy):
    """At task t, training on the data of tasks 1 .. t."""

    template = LaneCumulative


class Joint(Strategy):
    """Training once on the data of all tasks: the upper bound. Only the last row of the matrix exists."""

    template = LaneJoint
    whole_stream = True
