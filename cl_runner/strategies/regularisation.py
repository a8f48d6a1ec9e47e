"""Methods that hold weights or outputs near their earlier values."""

from __future__ import annotations

from typing import Any

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

    protects = True
    protects_weights = True
    reuses_prefix = True

    def __init__(self, *, ewc_lambda: float = 100.0, variant: str = "separate", decay_factor: float = 0.9) -> None:
        self.ewc_lambda, self.variant, self.decay_factor = ewc_lambda, variant, decay_factor

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """A value is held for each weight; the online variant sums those of one and the same list of weights."""
        _check_sizes(adapter, "ewc")
        if self.variant == "online" and adapter.per_task:
            raise RequestError(
                "strategy.variant=online sums importances over tasks, and this adapter has new weights for every task",
                "use strategy.variant=separate, or adapter=none",
            )

    def plugins(self, workshop: Workshop) -> list[Any]:
        """Avalanche's EWC."""
        from avalanche.training.plugins import EWCPlugin

        decay = self.decay_factor if self.variant == "online" else None
        return [EWCPlugin(ewc_lambda=self.ewc_lambda, mode=self.variant, decay_factor=decay)]


class LwF(Strategy):
    """Learning without forgetting: distils the network of the end of the previous task (Li and Hoiem, 2016).

    Args:
        alpha: weight of the distillation loss.
        temperature: of its softmax.
    """

    protects = True
    mixes_tasks = True

    def __init__(self, *, alpha: float = 1.0, temperature: float = 2.0) -> None:
        self.alpha, self.temperature = alpha, temperature

    def plugins(self, workshop: Workshop) -> list[Any]:
        """Avalanche's LwF; for texts the same over the vocabulary."""
        if workshop.network.reads_text:
            from cl_runner.strategies.token_distillation import TokenDistillation

            return [TokenDistillation(alpha=self.alpha, temperature=self.temperature)]
        from cl_runner.strategies.restartable import LaneLwF

        return [LaneLwF(alpha=self.alpha, temperature=self.temperature)]


class SI(Strategy):
    """Synaptic intelligence: importance gathered along the path of training (Zenke et al., 2017).

    Args:
        si_lambda: strength of the penalty.
        eps: damping of the importance.
    """

    protects = True
    protects_weights = True
    reuses_prefix = True

    def __init__(self, *, si_lambda: float = 1.0, eps: float = 1e-3) -> None:
        self.si_lambda, self.eps = si_lambda, eps

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """Avalanche's SI wants a gradient on every open parameter, which idle heads of other tasks do not get."""
        _check_sizes(adapter, "si")
        if workshop.network.separate_heads and not adapter.per_task:
            raise RequestError(
                "strategy=si needs a gradient on every trainable weight, and backbone.head=per_task leaves idle heads",
                "use backbone.head=shared (with task labels, other tasks' classes are masked)",
            )

    def plugins(self, workshop: Workshop) -> list[Any]:
        """Avalanche's synaptic intelligence."""
        from cl_runner.strategies.avalanche_classes import OwningSIPlugin

        return [OwningSIPlugin(si_lambda=self.si_lambda, eps=self.eps)]


def _check_sizes(adapter: Adapter, name: str) -> None:
    """Refuses weights that change their shape while what is remembered of them does not."""
    if adapter.resizes:
        raise RequestError(
            f"strategy={name} remembers one value for every weight, and adapter.rank_schedule drops weights while they "
            "train",
            "drop adapter.rank_schedule, or use strategy=replay, lwf or naive",
        )
