"""Methods that keep some data of earlier tasks."""

from __future__ import annotations

from typing import Any

from torch import nn

from cl_runner.adapters.adapter import Adapter
from cl_runner.backbones.heads import Head
from cl_runner.errors import RequestError
from cl_runner.strategies.strategy import Strategy, Workshop, check_batch_holds


class Replay(Strategy):
    """Experience replay: every batch holds as many stored as new samples (Chaudhry et al., 2019).

    Args:
        mem_size: stored samples in all, shared evenly by the tasks seen.
        batch_size_mem: stored samples in a batch; None: as many as new ones.
    """

    protects = True
    mixes_tasks = True

    def __init__(self, *, mem_size: int = 500, batch_size_mem: int | None = None) -> None:
        self.mem_size, self.batch_size_mem = mem_size, batch_size_mem

    def plugins(self, workshop: Workshop) -> list[Any]:
        """Avalanche's replay."""
        from avalanche.training.plugins import ReplayPlugin

        return [ReplayPlugin(mem_size=self.mem_size, batch_size_mem=self.batch_size_mem)]


class GEM(Strategy):
    """Gradient episodic memory: no step may raise the loss on stored samples (Lopez-Paz and Ranzato, 2017).

    Args:
        mem_size: stored samples in all; every task keeps mem_size / n_tasks of them.
        memory_strength: gamma of the paper.
    """

    protects = True
    mixes_tasks = True

    def __init__(self, *, mem_size: int = 500, memory_strength: float = 0.5) -> None:
        self.mem_size, self.memory_strength = mem_size, memory_strength

    def plugins(self, workshop: Workshop) -> list[Any]:
        """Avalanche's GEM."""
        from avalanche.training.plugins import GEMPlugin

        return [GEMPlugin(_share(self.mem_size, workshop.n_tasks), self.memory_strength)]


class AGEM(Strategy):
    """Averaged GEM: one constraint, the mean gradient over a sample of the memory (Chaudhry et al., 2019).

    Args:
        mem_size: stored samples in all; every task keeps mem_size / n_tasks of them.
        sample_size: stored samples whose gradient is the reference of a step.
    """

    protects = True
    mixes_tasks = True
    flattens_gradients = True

    def __init__(self, *, mem_size: int = 500, sample_size: int = 64) -> None:
        self.mem_size, self.sample_size = mem_size, sample_size

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """Avalanche's A-GEM flattens gradients without a copy, and samples at least one image a task."""
        if workshop.channels_last:
            raise RequestError(
                "strategy=agem cannot flatten channels-last gradients", "set trainer.channels_last=false"
            )
        if self.sample_size < workshop.n_tasks:
            raise RequestError(
                f"strategy.sample_size={self.sample_size} is less than one sample for each of {workshop.n_tasks} tasks",
                f"at least {workshop.n_tasks}",
            )

    def plugins(self, workshop: Workshop) -> list[Any]:
        """Avalanche's A-GEM."""
        from cl_runner.strategies.restartable import LaneAGEM

        return [LaneAGEM(_share(self.mem_size, workshop.n_tasks), self.sample_size)]


class DER(Strategy):
    """Dark experience replay; DER++ where beta > 0 (Buzzega et al., 2020).

    Args:
        mem_size: stored samples in all.
        batch_size_mem: stored samples in a batch; None: as many as new ones.
        alpha: weight of the mean squared error to the stored logits.
        beta: weight of the cross-entropy on stored samples.
    """

    template = "LaneDER"
    mixes_tasks = True
    needs_classes = True

    def __init__(
        self, *, mem_size: int = 500, batch_size_mem: int | None = None, alpha: float = 0.1, beta: float = 0.5
    ) -> None:
        self.mem_size, self.batch_size_mem, self.alpha, self.beta = mem_size, batch_size_mem, alpha, beta

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """DER computes one set of logits for samples of any task, which a set per task cannot give."""
        if adapter.per_task or workshop.network.separate_heads:
            raise RequestError(
                "strategy=der trains without task identity, and a set or head per task needs to know the task",
                "use adapter=none with backbone.head=shared, or strategy=replay",
            )

    def arguments(self, workshop: Workshop) -> dict[str, Any]:
        """DER's own options."""
        own = {"mem_size": self.mem_size, "batch_size_mem": self.batch_size_mem, "alpha": self.alpha, "beta": self.beta}
        return super().arguments(workshop) | own


class ICaRL(Strategy):
    """iCaRL: exemplars chosen by herding, distillation, nearest class mean at test time (Rebuffi et al., 2017).

    The class means are the strategy's, so that the network's weights alone do not give its answers.

    Args:
        mem_size: stored samples in all, shared evenly by the classes seen.
    """

    template = "LaneICaRL"
    mixes_tasks = True
    validates = False
    evaluates_untrained = False
    exports = False
    needs_classes = True

    def __init__(self, *, mem_size: int = 500) -> None:
        self.mem_size = mem_size

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """iCaRL compares class means of one feature extractor."""
        if adapter.per_task or workshop.network.separate_heads:
            raise RequestError(
                "strategy=icarl compares class means in one feature space, and a set or head per task has many",
                "use adapter=none or a shared set with backbone.head=shared, or strategy=replay",
            )
        check_batch_holds(2, workshop, "a batch holds new samples and exemplars")
        head = workshop.classifier.head
        if isinstance(head, Head) and not isinstance(head.classifier(0), nn.Linear):
            raise RequestError(
                "strategy=icarl compares feature vectors, and this backbone ends in a convolution",
                "use a backbone with a linear classifier, or strategy=replay",
            )

    def arguments(self, workshop: Workshop) -> dict[str, Any]:
        """Features and classifier apart; Avalanche's iCaRL brings its own loss."""
        from cl_runner.strategies.avalanche_classes import Features

        return {
            "feature_extractor": Features(workshop.classifier),
            "classifier": workshop.classifier.head,
            "memory_size": self.mem_size,
            "buffer_transform": None,
            "fixed_memory": True,
            "train_epochs": workshop.epochs[0],
        }


def _share(mem_size: int, n_tasks: int) -> int:
    """Samples a task may keep, at least one."""
    return max(1, mem_size // n_tasks)
