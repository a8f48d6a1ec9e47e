"""Modules that exist once per task: BatchNorm copies, and layers trained in full."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn


class TaskCopies(nn.Module):
    """A module of the base with a copy for each task that wants its own.

    Tasks without a copy (before their training, and the task that trained the base) use the base itself. Closed
    copies stay in evaluation mode whatever `train()` says, so that no later task moves their running statistics.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.copies = nn.ModuleDict()
        self.active: str | None = None
        self.open: tuple[str, ...] = ()
        self.base_open = True

    def begin_task(self, tasks: Sequence[int]) -> None:
        """Adds and opens the tasks' copies, starting from the base, and closes everything else."""
        self.close()
        for task in tasks:
            if str(task) not in self.copies:
                self.copies[str(task)] = copy.deepcopy(self.base)
            self.copies[str(task)].requires_grad_(True)
        self.open = tuple(str(task) for task in tasks)
        self.train(self.training)

    def close(self) -> None:
        """Nothing here trains any more."""
        self.requires_grad_(False)
        self.open, self.base_open = (), False
        self.train(self.training)

    def activate(self, task: int) -> None:
        """Computes with the task's copy, or with the base where it has none."""
        self.active = str(task) if str(task) in self.copies else None

    def train(self, mode: bool = True) -> TaskCopies:
        """Training mode reaches only what is open."""
        super().train(mode)
        for name, module in self.copies.items():
            module.train(mode and name in self.open)
        self.base.train(mode and self.base_open)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The active module's output."""
        return (self.base if self.active is None else self.copies[self.active])(*args, **kwargs)
