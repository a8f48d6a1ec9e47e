"""What every network is to strategies and adapters, whatever it computes: a backbone that lives through tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

EVERY_CLASS = object()  # stands for a call without task labels: the plain answer, whatever the task
NO_TASK = -1  # a task that no set belongs to: an adapter activated for it computes with the base


class TaskNetwork(nn.Module):
    """A backbone with its adapter, which is told what is trained and what is evaluated.

    Args:
        backbone: what computes.
        n_tasks: tasks of the stream.
        task_labels: whether the task of a sample is known.
        pretrained: whether the backbone's weights were loaded.
        precision: float32, or bfloat16 for autocast; answers are float32 in both.

    Attributes:
        inferred: the task (B,) chosen for each sample of the last batch; None where none was chosen.
        mixes_tasks: whether a batch may hold samples of several tasks; set by the strategy.
        changes: how often weights have changed without being seen to.
        phase: how often a task has begun or ended.
        moved: the modules of the backbone in which something moves, or last did, while a task is trained.
        extra: what a strategy needs besides to answer; counted as stored and at inference.
        base_parameters: of the backbone without its original classifier.
        reads_text: whether samples are token ids, and answers next-token logits.
    """

    backbone: nn.Module
    anchor: Tensor
    adapter: Any
    inference: Any
    base_parameters: int
    reads_text = False

    def __init__(
        self, backbone: nn.Module, *, n_tasks: int, task_labels: bool, pretrained: bool, precision: str
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.n_tasks = n_tasks
        self.task_labels = task_labels
        self.pretrained = pretrained
        self.precision = precision
        self.adapter = None
        self.inference = None
        self.begun: set[int] = set()
        self.learning: int | None = None
        self.active = 0
        self.inferred: Tensor | None = None
        self.mixes_tasks = False
        self.changes = self.phase = 0
        self.moved: frozenset[str] = frozenset()
        self.probed: int | None = None
        self.moving = (False, False)
        self.extra = nn.ModuleDict()
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    @property
    def prompted(self) -> bool:
        """Whether classes are known by their prompts (CLIP)."""
        return False

    @property
    def per_task(self) -> bool:
        """Whether the adapter keeps a set for every task, so that the whole forward depends on the task."""
        return bool(self.adapter is not None and self.adapter.per_task)

    @property
    def separate_heads(self) -> bool:
        """Whether every task has a classifier of its own."""
        return False

    @property
    def task_given(self) -> bool:
        """Whether the task of what is evaluated is told with `activate`."""
        return self.task_labels

    def begin_task(self, tasks: Sequence[int]) -> None:
        """Prepares training on the tasks: the adapter's new sets."""
        if self.adapter is not None:
            self.adapter.begin_task(tasks)
        self.begun |= set(tasks)
        self.learning = tasks[0]
        self.phase += 1

    def end_task(self) -> None:
        """Closes what was trained."""
        self._count_changes()
        if self.adapter is not None:
            self.adapter.end_task()
        self.learning, self.moving = None, (False, False)
        self.phase += 1

    def activate(self, task: int) -> None:
        """Switches the adapter to one task."""
        self.active = task
        if self.adapter is not None:
            self.adapter.activate(task if task < self.n_tasks else NO_TASK)  # a probe belongs to no set

    def owned(self, task: int) -> Iterator[nn.Module | Tensor]:
        """Modules and tensors that belong to one task alone: no other task's answers depend on them."""
        if self.adapter is not None:
            yield from self.adapter.owned(task)

    def stepped(self) -> None:
        """Told after every optimiser step: torch's fused optimisers write weights without raising their version."""
        self.changes += self.moving[0]

    def forget(self) -> None:
        """Drops what was computed from weights that have changed without being written, as a truncation does."""
        self.changes += 1

    def _count_changes(self) -> None:
        """Raises the versions of what a task has moved: neither fused optimisers nor BatchNorm do so themselves."""
        statistics = [
            item
            for name, module in self.backbone.named_modules()
            if name in self.moved
            for item in module._buffers.values()
            if item is not None
        ]
        for item in (*statistics, *(parameter for parameter in self.parameters() if parameter.requires_grad)):
            torch.autograd.graph.increment_version(item)

    def moving_modules(self) -> frozenset[str]:
        """The modules of the backbone that own an open parameter, or running statistics that follow the data."""
        training = self.training
        self.train()
        found = [
            name
            for name, module in self.backbone.named_modules()
            if any(item is not None and item.requires_grad for item in module._parameters.values())
            or (isinstance(module, _NormBase) and module.training and module.running_mean is not None)
        ]
        self.train(training)
        return frozenset(found)

    def known_tasks(self) -> set[int]:
        """Tasks that training has begun on."""
        return set(self.begun)

    def begin_evaluation(self, task: int) -> None:
        """Told which task is evaluated next; only a probe's identity, or one that is given, is made use of."""
        self.probed = task if task >= self.n_tasks else None
        if self.task_given:
            self.activate(task)

    def head_parameters(self, tasks_seen: int) -> list[int]:
        """Parameters of each classifier in use after so many tasks, without deltas (those are the adapter's)."""
        return [0]

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context in which the backbone computes."""
        if self.precision != "bfloat16" or device.type == "meta":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def anchored(self, logits: Tensor) -> Tensor:
        """Keeps a backward pass possible where nothing that trains took part (an earlier task's frozen set)."""
        if torch.is_grad_enabled() and not logits.requires_grad:
            return logits + self.anchor.detach().clone().requires_grad_(True)
        return logits


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def set_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Puts ``module`` in the place of the submodule called ``name``."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)
