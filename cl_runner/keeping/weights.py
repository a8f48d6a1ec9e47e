"""The tensors of a network and of its optimiser, for a checkpoint and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cl_runner.backbones.routing import TaskNetwork
from cl_runner.keeping.packing import SMALL, fingerprint

EXTRA = "extra."  # what a strategy gave the network; it changes between tasks only


class OtherNetwork(Exception):  # noqa: N818, the caller says what to do
    """A state does not fit the network that the configuration gives."""


def fingerprints(network: nn.Module) -> dict[str, str]:
    """The names of a network's larger tensors by their fingerprints."""
    return {fingerprint(item): name for name, item in everything(network).items() if item.numel() > SMALL}


def everything(network: nn.Module) -> dict[str, Tensor]:
    """Parameters, each once, and the buffers that are part of the state."""
    found: dict[str, Tensor] = dict(network.named_parameters())
    persistent = network.state_dict(keep_vars=True)
    return found | {name: item for name, item in network.named_buffers() if name in persistent}


def moving(network: nn.Module) -> dict[str, Tensor]:
    """What changes while a task is trained: open parameters, and buffers such as running statistics."""
    found: dict[str, Tensor] = {name: item for name, item in network.named_parameters() if item.requires_grad}
    buffers = {name: item for name, item in everything(network).items() if not isinstance(item, nn.Parameter)}
    return found | {name: item for name, item in buffers.items() if not name.startswith(EXTRA)}


@torch.no_grad()
def write(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Puts values into a network's tensors, in place.

    Raises:
        OtherNetwork: they are not the same tensors.
    """
    if weights.keys() != values.keys():
        odd = sorted(weights.keys() ^ values.keys())
        raise OtherNetwork(f"{odd[0]} is in one of the two only, and {len(odd) - 1} more")
    for name, item in weights.items():
        if item.shape != values[name].shape or item.dtype != values[name].dtype:
            raise OtherNetwork(f"{name} has the shape {tuple(values[name].shape)}, and is {tuple(item.shape)} here")
        item.copy_(values[name])


def relive(network: TaskNetwork, phases: Sequence[Sequence[int]], epochs: Sequence[int]) -> None:
    """Lets a fresh network and its adapter go through tasks without training, so that every part they made is there.

    Args:
        network: fresh from the configuration.
        phases: the tasks that were trained, together or one by one.
        epochs: begun in each.
    """
    for tasks, begun in zip(phases, epochs, strict=True):
        network.begin_task(tasks)
        for epoch in range(begun):
            network.adapter.begin_epoch(epoch)
        network.end_task()


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """An optimiser's state; its options but for the learning rates are the configuration's."""
    state = optimizer.state_dict()
    rates = [{name: group[name] for name in ("lr", "initial_lr") if name in group} for group in state["param_groups"]]
    return {"state": state["state"], "rates": rates}


def write_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Puts a state into an optimiser over the same parameters; each tensor in its parameter's memory format."""
    groups = optimizer.state_dict()["param_groups"]
    parameters = [item for group in optimizer.param_groups for item in group["params"]]
    kept = {
        place: {name: _like(parameters[place], value) for name, value in values.items()}
        for place, values in state["state"].items()
    }
    optimizer.load_state_dict(
        {"state": kept, "param_groups": [group | rates for group, rates in zip(groups, state["rates"], strict=True)]}
    )


def _like(parameter: Tensor, value: Any) -> Any:
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value
