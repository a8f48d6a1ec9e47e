"""Making optimisers over whatever a task trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]
FUSED = (SGD, Adam, AdamW)
FUSED_DEVICES = ("cpu", "cuda")


def optimizer_factory(kind: Callable[..., Optimizer], options: dict[str, Any]) -> OptimizerFactory:
    """Makes optimisers of one kind; fused where torch can, which takes the fewest operations a step.

    Args:
        kind: an optimiser class, or a function that makes one from `params` and the options.
        options: its other arguments.
    """

    def make(parameters: list[nn.Parameter]) -> Optimizer:
        fusible = all(item.is_floating_point() and item.device.type in FUSED_DEVICES for item in parameters)
        if kind in FUSED and fusible and "fused" not in options:
            return kind(params=parameters, fused=True, **options)
        return kind(params=parameters, **options)

    return make
