"""Networks in the form Avalanche recognises as ones that take task labels."""

from __future__ import annotations

from typing import Any

from avalanche.models import MultiTaskModule

from cl_runner.backbones.language import LanguageNetwork
from cl_runner.backbones.network import Network
from cl_runner.backbones.routing import EVERY_CLASS


class TaskAwareNetwork(Network, MultiTaskModule):
    """A `Network` whose forward gets the task labels of each batch, from strategies and plugins alike."""

    def forward(self, x: Any, task_labels: Any = EVERY_CLASS) -> Any:
        """Logits; see `Network.forward`."""
        return Network.forward(self, x, task_labels)


class TaskAwareLanguageNetwork(LanguageNetwork, MultiTaskModule):
    """A `LanguageNetwork` whose forward gets the task labels of each batch."""

    def forward(self, x: Any, task_labels: Any = EVERY_CLASS) -> Any:
        """Logits; see `LanguageNetwork.forward`."""
        return LanguageNetwork.forward(self, x, task_labels)
