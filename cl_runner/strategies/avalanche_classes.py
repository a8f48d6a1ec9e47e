"""Avalanche's strategies and plugins in the form in which they run here: on the lane, and with what they lack.

Recipes import this module only when a strategy is built, so that a request can be checked without Avalanche.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from avalanche.training.losses import ICaRLLossPlugin
from avalanche.training.plugins import SupervisedPlugin, SynapticIntelligencePlugin
from avalanche.training.supervised import DER, Cumulative, ICaRL, JointTraining
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import ParamData
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, mse_loss, one_hot

from cl_runner.backbones.network import Network
from cl_runner.backbones.text_head import TextHead
from cl_runner.strategies.restartable import InOrder
from cl_runner.strategies.ridge import RecursiveRidge, RidgeFusion
from cl_runner.training.draws import Draws
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

    A network of prompts knows the classes of tasks to come and of probes: they are no candidates in training, and where
    either the stored or the present logit is minus infinity, the two are not compared. The loss of new and of stored
    samples is that of the run, where Avalanche has a plain cross-entropy as soon as there is a memory.
    """

    memory: Draws | None = None  # batches of stored samples, kept from Avalanche's own loss
    replay_loader: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.storage_policy.seen_classes = InOrder()  # type: ignore[assignment]

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        loader, self.replay_loader = self.replay_loader, None
        self.memory = None if loader is None else Draws(lambda: loader, self.lane.generator)

    def _after_training_exp(self, **kwargs: Any) -> None:
        self.memory = None
        super()._after_training_exp(**kwargs)

    def _before_forward(self, **kwargs: Any) -> None:
        """Puts stored samples before the new ones."""
        self.replay_loader = self.memory
        super()._before_forward(**kwargs)
        self.replay_loader = None

    def criterion(self) -> Tensor:
        """The loss of the new samples; with a memory, also both losses of the stored ones."""
        if self.memory is None or not self.is_training:
            loss: Tensor = super().criterion()
            return loss
        stored, new = slice(None, self.batch_size_mem), slice(self.batch_size_mem, None)
        output, labels = self.mb_output, self.mb_y
        matching = comparable_mse(output[stored], self.batch_logits)
        old_loss = self._criterion(output[stored], labels[stored])
        total: Tensor = self._criterion(output[new], labels[new]) + self.alpha * matching + self.beta * old_loss
        return total

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Batches of images even where features would do: the memory, with which they are joined, holds images."""
        bank, self.bank = self.bank, None
        super().make_train_dataloader(**kwargs)
        self.bank = bank

    def forward(self) -> Tensor:
        """Plain logits over all candidates."""
        return self.model(self.mb_x)

    def _unpack_minibatch(self) -> None:
        batch: Any = self.mbatch  # type: ignore[has-type]
        self.mbatch = [item.to(self.device) for item in batch]  # DER joins its memory's task labels there


def comparable_mse(logits: Tensor, stored: Tensor) -> Tensor:
    """The mean squared difference over the places where neither of the two is minus infinity."""
    comparable = logits.isfinite() & stored.isfinite()
    pair = (logits.masked_fill(~comparable, 0.0), stored.masked_fill(~comparable, 0.0))
    return mse_loss(*pair) * (comparable.numel() / comparable.sum())  # times one, and exact, where all are


class PromptedICaRLLoss(ICaRLLossPlugin):
    """iCaRL's loss with the softmax over the candidates in the place of every class's sigmoid.

    CLIP's logits are similarities times 100, some 15 to 35 for every class: sigmoids of them all are 1 in float32, and
    have no gradient.
    """

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the candidates of the binary cross-entropy to the label, or to the old network's answer."""
        wanted = one_hot(targets.long(), logits.shape[1]).to(logits.dtype)
        before: Tensor | None = self.__dict__["old_logits"]
        if before is not None:
            wanted[:, self.old_classes] = before.softmax(1)[:, self.old_classes]
            self.old_logits = None
        candidates = logits.isfinite()
        return binary_cross_entropy(logits.softmax(1)[candidates], wanted[candidates])


class LaneICaRL(LaneMixin, ICaRL):
    """Avalanche's iCaRL on the lane."""

    def __init__(self, *, classifier: nn.Module, **kwargs: Any) -> None:
        super().__init__(classifier=classifier, **kwargs)
        if isinstance(classifier, TextHead):
            loss: Any = PromptedICaRLLoss()
            place = next(i for i, plugin in enumerate(self.plugins) if isinstance(plugin, ICaRLLossPlugin))
            self.plugins[place] = self._criterion = loss

    def _before_training(self, **kwargs: Any) -> None:
        """Gives the loss its teacher: the network as the task before left it."""
        if self._criterion.old_classes:
            self._criterion.old_model = copy.deepcopy(self.model)
        super()._before_training(**kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        """Keeps no teacher between two tasks: an adapter's first set has no place in the copy of an earlier one."""
        self._criterion.old_model = None
        super()._after_training_exp(**kwargs)
        self._criterion.old_model = None


class LaneFrozen(LaneMixin, SupervisedTemplate):
    """Goes through the tasks without a step: nothing is open, and a task's batches come in order and not augmented."""

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """The task's training data as at evaluation."""
        self.make_eval_dataloader()

    def make_optimizer(self, **kwargs: Any) -> None:
        """Nothing is optimised."""


class RidgePlugin(SupervisedPlugin):
    """Adds each task's training data to a ridge regression, once, and lets the network answer with it.

    Args:
        network: frozen; gives the features.
        regression: the sums over all data seen.
        fusion: what the network answers with.
    """

    def __init__(self, network: Network, regression: RecursiveRidge, fusion: RidgeFusion) -> None:
        super().__init__()
        self.network, self.regression, self.fusion = network, regression, fusion

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Learns the task."""
        self.network.eval()
        seen = []
        for x, labels, *_ in strategy.dataloader:
            self.regression.add(self.fusion.expand(self.network.features(x)), labels)
            seen.append(labels.unique())
        self.network.train()
        self.fusion.learn(self.regression.solve(), torch.cat(seen).unique())

    def memory(self) -> dict[str, Any]:
        """The sums over everything seen."""
        return {"products": self.regression.products_HH, "targets": self.regression.targets_CH}

    def remember(self, memory: dict[str, Any]) -> None:
        """Takes the sums back; the weights that came of them are the network's."""
        self.regression.products_HH.copy_(memory["products"])
        self.regression.targets_CH.copy_(memory["targets"])

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Says which classes are candidates: the task's own, or without task labels those of all tasks."""
        network, task = self.network, strategy.experience.current_experience
        own = network.task_labels or task >= network.n_tasks  # a probe has its own classes whatever is known of tasks
        self.fusion.excluded = network.masked[task] if own else network.masked[: network.n_tasks].all(0)

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Any class is a candidate again."""
        self.fusion.excluded = None


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

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Copies the weights at the end of a task: what an adapter then merges into them is no step of theirs."""
        super().after_training_exp(strategy, **kwargs)
        _own(self.syn_data["new_theta"])


def _own(weights: dict[str, ParamData]) -> None:
    for item in weights.values():
        item.data = item.data.clone()
