"""The contract of a strategy: which Avalanche class runs, with which plugins, and what it cannot be combined with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import nn

from cl_runner.adapters.adapter import Adapter
from cl_runner.backbones.network import Network
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.errors import RequestError
from cl_runner.training.optimizers import OptimizerFactory

if TYPE_CHECKING:
    from cl_runner.training.lane import Lane

AVALANCHE_CLASSES = "cl_runner.strategies.avalanche_classes"


@dataclass(frozen=True)
class Workshop:
    """Everything a strategy is built from, besides its own options.

    Attributes:
        network: what is trained.
        n_tasks: tasks of the stream.
        task_labels: whether the task of a sample is known.
        optimizer_factory: makes an optimiser over given parameters.
        batch_size, eval_batch_size, iterations: of training; iterations replace epochs where given.
        epochs: of each task.
        channels_last: whether images and weights are in channels-last format.
        reset_optimizer: whether every task starts with a fresh optimiser state.
        criterion: the loss of (logits, labels).
        lane: makes the loaders; None while the request is only being checked.
        cache_bytes: what kept features may take on the device; 0: none are kept.
    """

    network: TaskNetwork
    n_tasks: int
    task_labels: bool
    optimizer_factory: OptimizerFactory
    batch_size: int
    eval_batch_size: int
    epochs: tuple[int, ...]
    iterations: int | None
    channels_last: bool
    reset_optimizer: bool
    criterion: nn.Module = field(default_factory=nn.CrossEntropyLoss)
    lane: Lane | None = None
    cache_bytes: int = 0

    @property
    def classifier(self) -> Network:
        """The network, for methods that look at classes."""
        assert isinstance(self.network, Network), "assembly refuses methods of classes for other networks"
        return self.network


def check_batch_holds(groups: int, workshop: Workshop, reason: str) -> None:
    """Raises RequestError where Avalanche's balanced loader could not put a sample of every group into a batch."""
    if workshop.task_labels and workshop.batch_size < groups:
        raise RequestError(
            f"trainer.batch_size={workshop.batch_size}: with task labels, {reason}", f"at least {groups} here"
        )


class Strategy:
    """A recipe for an Avalanche strategy; most only add plugins to plain training.

    Attributes:
        template: the Avalanche class, by its name in `avalanche_classes.py`.
        whole_stream: trains once on all tasks instead of on one after another.
        revisits: trains on the data of all tasks seen so far, and validates on it.
        validates: whether the network answers as a classifier during training, so that a validation split can be used.
        descends: whether it trains by gradient descent at all.
        reads_training: whether it looks at training images at all.
        evaluates_untrained: whether it can classify before the first task.
        mixes_tasks: puts samples of several tasks into a batch, or compares outputs over tasks, so that a network
            with a set per task needs task labels during training too.
        exports: whether the network's weights are all that answers, so that they can be written to a file and used
            without the strategy.
        needs_classes: works on class scores, class features or prompts, which a language model does not have.
        protects: keeps what earlier tasks learned from changing, or trains on their data again.
        protects_weights: does so by remembering values of weights.
        flattens_gradients: as views of their memory, which channels-last ones cannot give.
        reuses_prefix: takes a batch to the network and nowhere else, so that it may hold what a frozen prefix gave for
            the images in their place.
    """

    template: str = "LaneStrategy"
    whole_stream: bool = False
    revisits: bool = False
    validates: bool = True
    descends: bool = True
    reads_training: bool = True
    evaluates_untrained: bool = True
    mixes_tasks: bool = False
    exports: bool = True
    needs_classes: bool = False
    protects_weights: bool = False
    protects: bool = False
    flattens_gradients: bool = False
    reuses_prefix: bool = False

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """Raises RequestError where this strategy cannot work with the adapter, and says why."""

    def plugins(self, workshop: Workshop) -> list[Any]:
        """The method, as Avalanche plugins."""
        return []

    def arguments(self, workshop: Workshop) -> dict[str, Any]:
        """What the template's constructor takes for the network and for the method."""
        return {"model": workshop.network, "criterion": workshop.criterion, "train_epochs": workshop.epochs[0]}

    def build(self, workshop: Workshop, watchers: Sequence[Any], evaluator: Any) -> Any:
        """The Avalanche strategy: the method's plugins first, then those that watch and drive the adapter."""
        from cl_runner.training.features import FeatureBank  # with the lane comes Avalanche
        from cl_runner.training.meter import NoMetrics

        assert workshop.lane is not None
        cuts = self.reuses_prefix and isinstance(evaluator, NoMetrics)  # a metric may look at the images
        everything = list(workshop.network.parameters())
        # Avalanche wants an optimiser now; over a frozen base nothing is open yet, and the first task makes its own.
        parameters = [item for item in everything if item.requires_grad] or everything
        strategy = getattr(import_module(AVALANCHE_CLASSES), self.template)(
            optimizer=workshop.optimizer_factory(parameters),
            train_mb_size=workshop.batch_size,
            eval_mb_size=workshop.eval_batch_size,
            device=workshop.lane.store.device,
            plugins=[*self.plugins(workshop), *watchers],
            evaluator=evaluator,
            **self.arguments(workshop),
        )
        strategy.equip(
            lane=workshop.lane,
            optimizer_factory=workshop.optimizer_factory,
            iterations=workshop.iterations,
            reset_optimizer=workshop.reset_optimizer,
            bank=FeatureBank.of(workshop.network, workshop.lane, workshop.cache_bytes, cuts=cuts),
        )
        return strategy
