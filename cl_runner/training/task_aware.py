"""The network in the form Avalanche recognises as one that takes task labels."""

from __future__ import annotations

from typing import Any

from avalanche.models import MultiTaskModule

from cl_runner.backbones.network import EVERY_CLASS, Network


class TaskAwareNetwork(Network, MultiTaskModule):
    """A `Network` whose forward gets the task labels of each batch, from strategies and plugins alike."""

    def forward(self, x: Any, task_labels: Any = EVERY_CLASS) -> Any:
        """Logits; see `Network.forward`."""
        return Network.forward(self, x, task_labels)
