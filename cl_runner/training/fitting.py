"""How many samples are evaluated at once on a GPU: as many as fit well into its memory, the same on every attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.backbones.generation import evaluating

SHARE = 0.25  # of a GPU's memory: the rest is for weights, the data that lies there, and what hooks do not see
LEAST, MOST = 16, 4096  # beyond a few thousand nothing becomes faster


def memory_of(device: torch.device) -> int:
    """All of a GPU's memory in bytes, not what is free of it: a run that goes on has to come to the same number."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def activation_bytes(network: nn.Module, answer: Callable[[], object]) -> int:
    """The bytes of all outputs of a network's leaf modules for one sample, on any device.

    Without gradients most of them are freed at once, so that this is more than evaluation needs.

    Args:
        network: whose modules are looked at.
        answer: has it answer to one sample.
    """
    counted = [0]

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        counted[0] += sum(item.nelement() * item.element_size() for item in _tensors(output))

    leaves = (module for module in network.modules() if not any(True for _ in module.children()))
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        with torch.no_grad(), evaluating(network):
            answer()
    finally:
        for hook in hooks:
            hook.remove()
    return counted[0]


def fitting(memory: int, sample: int) -> int:
    """The largest power of two of samples that take a quarter of the memory; from 16 to 4096."""
    fits = int(SHARE * memory) // max(1, sample)
    return min(MOST, max(LEAST, 1 << max(0, fits.bit_length() - 1)))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors(item)]
