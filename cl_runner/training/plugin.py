"""The one Avalanche plugin that drives an adapter's life."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from cl_runner.backbones.network import Network
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.benchmarks.avalanche_view import sample_ids


class AdapterPlugin(SupervisedPlugin):
    """Begin task, begin epoch, before step, penalty, after step, end task, and activation for evaluation.

    It must be the last of the strategy's plugins: methods that look at the network when a task ends (EWC's
    importances, LwF's copy) then still find the task's parameters open.
    """

    def __init__(self, network: TaskNetwork) -> None:
        super().__init__()
        self.network = network
        self.step = 0
        self.steps = 1

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """The first event of a task, before Avalanche makes loaders and the optimiser."""
        self.network.begin_task([experience.current_experience for experience in strategy.trained_together])

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Counts the steps to come."""
        self.step, self.steps = 0, max(1, strategy.epoch_batches * strategy.train_epochs)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Lets the adapter replace what it trains; the optimiser starts over with what is new."""
        replaced = self.network.adapter.begin_epoch(strategy.clock.train_exp_epochs)
        new_of = {id(old): new for old, new in replaced}
        for old, _ in replaced:
            strategy.optimizer.state.pop(old, None)
        for group in strategy.optimizer.param_groups if replaced else ():
            group["params"] = [new_of.get(id(item), item) for item in group["params"]]

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Lets the adapter act before the forward pass."""
        strategy.timer.mark("hooks")
        self.network.adapter.before_step(self.step / self.steps)
        strategy.timer.mark("adapter")

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Adds the adapter's penalty."""
        strategy.timer.mark("hooks")
        penalty = self.network.adapter.penalty()
        if penalty is not None:
            strategy.loss = strategy.loss + penalty
        strategy.timer.mark("adapter")

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Lets the adapter act after the optimiser."""
        strategy.timer.mark("hooks")
        self.step += 1
        self.network.stepped()
        self.network.adapter.after_step(self.step / self.steps)
        strategy.timer.mark("adapter")

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Closes the task; where tasks are told apart by class means, they are taken now that it is learned."""
        self.network.end_task()
        if self.network.inference is not None and self.network.inference.prototypes is not None:
            ids = sample_ids(strategy.experience.dataset)
            assert ids is not None, "training data always comes from the store"
            assert isinstance(self.network, Network), "only a network with classes infers tasks"
            self.network.learn_prototypes(strategy.lane.evaluation(ids, strategy.eval_mb_size))

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Switches to the task that is about to be evaluated, where its identity is known."""
        self.network.begin_evaluation(strategy.experience.current_experience)
