"""No adapter: the network itself learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cl_runner.adapters.adapter import Adapter
from cl_runner.adapters.placement import Placement
from cl_runner.backbones.routing import TaskNetwork


class NoAdapter(Adapter):
    """Every weight trains on every task; what a strategy protects, it protects here."""

    called = "none"
    _first: dict[str, Tensor] | None = None
    _tasks = 0

    def attach(self, model: nn.Module, placement: Placement | str = "all") -> None:
        """Leaves the network as it is."""
        self.model = model

    def begin_task(self, tasks: int | Sequence[int]) -> None:
        """Every weight stays open; the weights from which the drift counts are kept once."""
        if self._first is None and (self._tasks or getattr(self.model, "pretrained", False)):
            self._first = {name: weight.detach().cpu().clone() for name, weight in self._weights().items()}
        self._tasks += 1

    def drift(self) -> float | None:
        """||theta - theta_0||_F over every weight that an adapter could be placed on."""
        if self._first is None:
            return 0.0
        now = self._weights()
        return math.sqrt(sum(float((now[name].detach().cpu() - old).norm()) ** 2 for name, old in self._first.items()))

    def memory(self) -> dict[str, Any]:
        """The weights from which the drift counts."""
        return {"first": self._first, "tasks": self._tasks}

    def remember(self, memory: dict[str, Any]) -> None:
        """Counts from them again."""
        self._first, self._tasks = memory["first"], memory["tasks"]

    def course(self) -> dict[str, Any]:
        """Nothing: what it remembers changes between two tasks only."""
        return {}

    def take_up(self, course: dict[str, Any]) -> None:
        """Has nothing to take back."""

    def _weights(self) -> dict[str, Tensor]:
        root = self.model.backbone if isinstance(self.model, TaskNetwork) else self.model
        placed = Placement().candidates(root)
        owners = {name.rpartition(".")[0] for name in placed}  # of packed projections
        return {
            name: weight
            for name, weight in root.named_parameters()
            if not weight.is_meta
            and (name.removesuffix(".weight") in placed or (name.endswith("in_proj_weight") and _owner(name) in owners))
        }


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
