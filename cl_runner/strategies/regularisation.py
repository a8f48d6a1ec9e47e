"""Methods that hold weights or outputs near their earlier values."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import EWCPlugin, LwFPlugin, SupervisedPlugin, SynapticIntelligencePlugin
from avalanche.training.utils import ParamData

from cl_runner.adapters.adapter import Adapter
from cl_runner.errors import RequestError
from cl_runner.strategies.strategy import Strategy, Workshop


class EWC(Strategy):
    """Elastic weight consolidation: loss + lambda * sum_i F_i (theta_i - theta*_i)^2 (Kirkpatrick et al., 2017).

    Args:
        ewc_lambda: strength of the penalty.
        variant: `separate` keeps one penalty per earlier task, `online` one decayed sum.
        decay_factor: of the online variant.
    """

    def __init__(self, *, ewc_lambda: float = 100.0, variant: str = "separate", decay_factor: float = 0.9) -> None:
        self.ewc_lambda, self.variant, self.decay_factor = ewc_lambda, variant, decay_factor

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """Avalanche's online EWC sums the importances of one and the same list of weights."""
        if self.variant == "online" and adapter.per_task:
            raise RequestError(
                "strategy.variant=online sums importances over tasks, and this adapter has new weights for every task",
                "use strategy.variant=separate, or adapter=none",
            )

    def plugins(self, workshop: Workshop) -> list[SupervisedPlugin]:
        """Avalanche's EWC."""
        decay = self.decay_factor if self.variant == "online" else None
        return [EWCPlugin(ewc_lambda=self.ewc_lambda, mode=self.variant, decay_factor=decay)]


class LwF(Strategy):
    """Learning without forgetting: distils the network of the end of the previous task (Li and Hoiem, 2016).

    Args:
        alpha: weight of the distillation loss.
        temperature: of its softmax.
    """

    def __init__(self, *, alpha: float = 1.0, temperature: float = 2.0) -> None:
        self.alpha, self.temperature = alpha, temperature

    def plugins(self, workshop: Workshop) -> list[SupervisedPlugin]:
        """Avalanche's LwF."""
        return [LwFPlugin(alpha=self.alpha, temperature=self.temperature)]


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


class SI(Strategy):
    """Synaptic intelligence: importance gathered along the path of training (Zenke et al., 2017).

    Args:
        si_lambda: strength of the penalty.
        eps: damping of the importance.
    """

    def __init__(self, *, si_lambda: float = 1.0, eps: float = 1e-3) -> None:
        self.si_lambda, self.eps = si_lambda, eps

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """Avalanche's SI wants a gradient on every open parameter, which idle heads of other tasks do not get."""
        if workshop.network.head.per_task and not adapter.per_task:
            raise RequestError(
                "strategy=si needs a gradient on every trainable weight, and backbone.head=per_task leaves idle heads",
                "use backbone.head=shared (with task labels, other tasks' classes are masked)",
            )

    def plugins(self, workshop: Workshop) -> list[SupervisedPlugin]:
        """Avalanche's synaptic intelligence."""
        return [OwningSIPlugin(si_lambda=self.si_lambda, eps=self.eps)]
