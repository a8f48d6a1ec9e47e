"""No adapter: the network itself learns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cl_runner.adapters.adapter import Adapter
from cl_runner.adapters.placement import Placement


class NoAdapter(Adapter):
    """Every weight trains on every task; what a strategy protects, it protects here."""

    def attach(self, model: nn.Module, placement: Placement | str = "all") -> None:
        """Leaves the network as it is."""
        self.model = model

    def begin_task(self, tasks: int | Sequence[int]) -> None:
        """Nothing to decide: every weight stays open, and the network opens its heads."""
