"""A training step, from emptied gradients to changed weights."""

from __future__ import annotations

from typing import Any

from cl_runner.training.events import STEP_EVENTS

OUTSIDE = ("before_training_iteration", "after_training_iteration")  # these surround a step and may do as they like


class Step:
    """A step as Avalanche makes it: the loss, what plugins add to it, the backward pass, the optimiser.

    ::

        L = criterion(network(x), y) + what plugins add before the backward pass
        theta <- optimiser(theta, dL / dtheta)
    """

    def begin_epoch(self, strategy: Any) -> None:
        """Told before the steps of an epoch; whatever a step depends on besides the batch changes only in between."""

    def learn(self, strategy: Any) -> bool:
        """Learns from the strategy's batch; leaves the answer in `mb_output` and the loss in `loss`.

        Returns:
            Whether the weights were changed: not where the guard skips a loss that is no finite number.
        """
        fire, mark = strategy.events.fire, strategy.timer.mark
        for group in strategy.optimizer.param_groups:  # as zero_grad does, without what that is wrapped in
            for parameter in group["params"]:
                parameter.grad = None
        strategy.loss = 0
        fire("before_forward")
        strategy.mb_output = strategy.forward()
        fire("after_forward")
        mark("forward")
        loss = strategy.criterion()
        strategy.loss = loss if isinstance(strategy.loss, int) else strategy.loss + loss
        mark("loss")
        fire("before_backward")
        mark("hooks")
        if not strategy.guard.accepts(strategy):
            return False
        strategy.backward()
        mark("backward")
        fire("after_backward")
        fire("before_update")
        mark("hooks")
        strategy.optimizer_step()
        mark("optimiser")
        fire("after_update")
        mark("hooks")
        return True


def why_not_lean(strategy: Any) -> str | None:
    """Why a strategy's step is more than forward pass, loss, adapter and update; None where it is just that.

    Lean steps can be recorded once and replayed, or computed for several runs together: nobody looks at them from
    outside while they are under way, and they do the same every time.
    """
    from cl_runner.training.plugin import AdapterPlugin

    strategy.events.refresh()
    for name in STEP_EVENTS:
        for plugin in strategy.events.acting(name):
            if plugin is None:
                return f"{type(strategy).__name__} has a step of its own"
            if name not in OUTSIDE and not isinstance(plugin, AdapterPlugin):
                return f"{type(plugin).__name__} acts in the middle of every step"
    return None
