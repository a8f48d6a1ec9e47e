"""The bounds between which every method lies: fine-tuning below, training on everything above."""

from __future__ import annotations

from cl_runner.adapters.adapter import Adapter
from cl_runner.strategies.strategy import Strategy, Workshop, check_batch_holds

EVERY_TASK = "a batch holds samples of every task"


class Naive(Strategy):
    """Fine-tuning on each task in turn, with nothing against forgetting but the adapter."""

    reuses_prefix = True


class Cumulative(Strategy):
    """At task t, training on the data of tasks 1 .. t."""

    template = "LaneCumulative"
    protects = True
    revisits = True
    mixes_tasks = True

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """The batches of the last task hold samples of all."""
        check_batch_holds(workshop.n_tasks, workshop, EVERY_TASK)


class Joint(Strategy):
    """Training once on the data of all tasks: the upper bound. Only the last row of the matrix exists."""

    template = "LaneJoint"
    whole_stream = True
    mixes_tasks = True

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """Every batch holds samples of all tasks."""
        check_batch_holds(workshop.n_tasks, workshop, EVERY_TASK)
