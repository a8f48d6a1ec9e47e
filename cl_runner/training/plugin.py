"""The one Avalanche plugin that drives an adapter's life."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from cl_runner.backbones.network import Network


class AdapterPlugin(SupervisedPlugin):
    """Begin task, penalty, after step, end task, and activation for evaluation.

    It must be the last of the strategy's plugins: methods that look at the network when a task ends (EWC's
    importances, LwF's copy) then still find the task's parameters open.
    """

    def __init__(self, network: Network) -> None:
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

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Adds the adapter's penalty."""
        penalty = self.network.adapter.penalty()
        if penalty is not None:
            strategy.loss += penalty

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Lets the adapter act after the optimiser."""
        self.step += 1
        self.network.adapter.after_step(self.step / self.steps)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Closes the task."""
        self.network.adapter.end_task()

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Switches to the task that is about to be evaluated, where its identity is known."""
        if self.network.task_labels:
            self.network.activate(strategy.experience.current_experience)
