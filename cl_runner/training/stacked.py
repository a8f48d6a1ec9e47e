"""The steps of several runs as one: networks of one structure, their weights stacked, computed together.

Shapes: n runs, B images a batch. A stacked tensor (n, ...) holds what belongs to run i at [i].
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import SGD, Adam, AdamW

from cl_runner.training.guard import STOP
from cl_runner.training.step import why_not_lean

TOGETHER = (SGD, Adam, AdamW)  # optimisers that change every number by itself: over all runs' weights in one call
State = dict[str, Tensor]


@dataclass
class Answer:
    """What a stacked step leaves to one run: its answers (B, n_classes) and its loss, both without history."""

    output: Tensor
    loss: Tensor


def why_not_stacked(strategy: Any) -> str | None:
    """Why a run's steps of this epoch cannot be computed with those of others; None where they can."""
    network = strategy.model
    if network.reads_text:
        return "texts differ in length"
    if network.prompted:
        return "the embeddings of prompts are kept outside the step"
    if not network.adapter.steady:
        return f"adapter={network.adapter.label} computes something else at every step"
    if network.adapter.penalty() is not None:
        return f"adapter={network.adapter.label} adds a penalty"
    if strategy.guard.on_nan != STOP:
        return "on_nan=skip looks at every loss before anything learns from it"
    if any(isinstance(item, _DropoutNd) and item.p > 0 and item.training for item in network.modules()):
        return "dropout draws from each run's own generator"
    return why_not_lean(strategy)


def structure(strategy: Any) -> tuple[Any, ...]:
    """What two runs have in common whose steps can be computed together, but for the batch; fixed within an epoch."""
    network, optimizer = strategy.model, strategy.optimizer
    named = [(name, item.shape, item.dtype, item.requires_grad) for name, item in network.named_parameters()]
    buffers = [(name, item.shape, item.dtype) for name, item in network.named_buffers()]
    modes = tuple(module.training for module in network.modules())
    held = sum(len(group["params"]) for group in optimizer.param_groups)
    return type(network), network.learning, tuple(named), tuple(buffers), modes, type(optimizer), held


def memory(strategy: Any) -> tuple[Any, ...]:
    """Which objects a run's steps of an epoch work on: where they are others, it has to be stacked anew."""
    return id(strategy.optimizer), *map(id, strategy.model.parameters()), *map(id, strategy.model.buffers())


def batch_shape(strategy: Any) -> tuple[Any, ...] | None:
    """What two batches have in common that can be stacked; None where a batch holds several tasks, and that matters."""
    images, labels, *_, tasks = strategy.mbatch
    task = None
    if strategy.model.task_labels:
        task = int(tasks[0])
        if tasks.stride() != (0,) and not bool((tasks == task).all()):
            return None
    return type(images), images.shape, images.dtype, labels.shape, task


class Stack:
    """The networks of several runs, as long as their structure stays what it is.

    ::

        L_i = criterion(network(x_i; theta_i), y_i),  one forward pass over all i (torch.func.vmap)
        d(L_1 + ... + L_n) / d theta_i = dL_i / d theta_i

    Parameters that train and running statistics of training BatchNorm are moved into stacked tensors, of which those of
    each run are views from then on: nothing is copied back, and whatever looks at a run's network sees it as if it were
    alone. What is frozen and equal in all runs is taken once; what is frozen and differs is stacked.

    Args:
        strategies: the runs, of one `structure`.
    """

    def __init__(self, strategies: Sequence[Any]) -> None:
        self.strategies = list(strategies)
        self.networks: list[nn.Module] = [strategy.model for strategy in strategies]
        moving = _statistics(self.networks[0])
        parameters = [dict(network.named_parameters()) for network in self.networks]
        buffers = [dict(network.named_buffers()) for network in self.networks]
        self.learned: State = {}
        self.kept: State = {}
        self.shared: State = {}
        self._places: list[tuple[Tensor, int]] = []
        for name, first in parameters[0].items():
            self._add(name, [item[name] for item in parameters], first.requires_grad)
        for name in buffers[0]:
            self._add(name, [item[name] for item in buffers], False, moves=name in moving)
        self._before = [torch.empty_like(item) for item in self.kept.values()]
        self._wide = _Wide(self.strategies)

    def _add(self, name: str, each: list[Tensor], learns: bool, *, moves: bool = False) -> None:
        if not learns and not moves and all(item is each[0] or torch.equal(item, each[0]) for item in each[1:]):
            self.shared[name] = each[0].detach()
            return
        stacked = torch.stack([item.detach() for item in each])
        (self.learned if learns else self.kept)[name] = stacked.requires_grad_(learns)
        if learns or moves:
            for item, view in zip(each, stacked.detach(), strict=True):
                item.data = view
                self._places.append((item, view.data_ptr()))

    @property
    def current(self) -> bool:
        """Whether each run's weights are still where they were put."""
        return all(item.data_ptr() == place for item, place in self._places)

    def losses(self) -> tuple[Tensor, Tensor]:
        """Answers (n, B, n_classes) and losses (n,) of all runs' batches, and the gradients of the losses.

        Raises:
            Exception: something here cannot be stacked; every run is as it was before.
        """
        first = self.strategies[0]
        for stacked in self.learned.values():
            stacked.grad = None
        x_NBCHW = torch.stack([strategy.mbatch[0] for strategy in self.strategies])
        y_NB = torch.stack([strategy.mbatch[1] for strategy in self.strategies])
        network, tasks, criterion = self.networks[0], first.mbatch[-1], first._criterion

        def one(learned: State, kept: State, x_BCHW: Tensor, y_B: Tensor) -> tuple[Tensor, Tensor]:
            output = functional_call(network, {**self.shared, **kept, **learned}, (x_BCHW, tasks))  # type: ignore[arg-type]
            return output, criterion(output, y_B)

        kept = list(self.kept.values())
        if kept:
            torch._foreach_copy_(self._before, kept)
        try:
            with _unanchored(network):
                outputs, losses = vmap(one)(self.learned, self.kept, x_NBCHW, y_NB)
            if losses.requires_grad:
                losses.sum().backward()
        except Exception:
            if kept:  # statistics may have moved before it failed
                torch._foreach_copy_(kept, self._before)
            raise
        return outputs.detach(), losses.detach()

    def update(self, found: tuple[Tensor, Tensor]) -> list[Answer]:
        """Lets every run learn; on the CPU not the one whose loss is no finite number.

        On a GPU that would mean to wait for the device; there it is found later, as for a run alone.
        """
        outputs, losses = found
        fine = losses.isfinite().tolist() if losses.device.type == "cpu" else [True] * len(losses)
        self._hand_out_gradients()
        self._wide.step(fine)
        return [Answer(output, loss) for output, loss in zip(outputs, losses, strict=True)]

    def _hand_out_gradients(self) -> None:
        named = [dict(network.named_parameters()) for network in self.networks]
        for name, stacked in self.learned.items():
            for index, parameters in enumerate(named):
                parameters[name].grad = None if stacked.grad is None else stacked.grad[index]


@dataclass
class _Wide:
    """The optimisers of several runs, one call for all where they are alike.

    Fused optimisers change every number by itself: over more tensors at once they compute the same. Each run's
    optimiser keeps its own state, which the wide one works on.
    """

    strategies: list[Any]
    whole: Any = None
    over: list[bool] = field(default_factory=list)

    def step(self, fine: list[bool]) -> None:
        """Updates the runs whose loss is a number."""
        taking = [strategy for strategy, good in zip(self.strategies, fine, strict=True) if good]
        if not taking:
            return
        first = taking[0].optimizer
        rates = [_settings(strategy.optimizer) for strategy in taking]
        if type(first) not in TOGETHER or any(rate != rates[0] for rate in rates):
            for strategy in taking:
                strategy.optimizer_step()
            return
        if self.whole is None or self.over != fine:
            self.whole, self.over = _over_all(taking), fine
        for place, group in enumerate(self.whole.param_groups):
            group.update({key: value for key, value in first.param_groups[place].items() if key != "params"})
        self.whole.step()
        for strategy in taking:
            strategy.optimizer._opt_called = True  # else schedulers warn that it was never asked for a step
            for group in strategy.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter in self.whole.state:
                        strategy.optimizer.state[parameter] = self.whole.state[parameter]


def _over_all(strategies: list[Any]) -> Any:
    """An optimiser over the parameters of several runs, which goes on with the state that they have."""
    first = strategies[0].optimizer
    groups = []
    for place, group in enumerate(first.param_groups):
        together = [item for strategy in strategies for item in strategy.optimizer.param_groups[place]["params"]]
        groups.append({**group, "params": together})
    whole = type(first)(groups, **{key: first.defaults[key] for key in ("lr", "fused") if key in first.defaults})
    for strategy in strategies:
        whole.state.update(strategy.optimizer.state)
    return whole


def _settings(optimizer: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _statistics(network: nn.Module) -> set[str]:
    """Names of the running statistics that a training step moves."""
    moved = [
        f"{name}.{buffer}" if name else buffer
        for name, module in network.named_modules()
        if isinstance(module, _NormBase) and module.training
        for buffer, _ in module.named_buffers(recurse=False)
    ]
    return set(moved)


@contextlib.contextmanager
def _unanchored(network: Any) -> Iterator[None]:
    """Without the anchor of a network of which nothing trains: within vmap answers cannot say whether they need it."""
    network.anchored = lambda logits: logits
    try:
        yield
    finally:
        del network.anchored
