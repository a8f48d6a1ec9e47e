"""What an experiment file said about a component that the user then replaced."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, open_dict

from cl_runner.config.components import COMPONENTS
from cl_runner.errors import RequestError


def shed(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Drops inherited keys that the chosen component does not have.

    `+experiment=convlora_cifar10 adapter=none` composes to the adapter none with the rank that the experiment gave
    to ConvLoRA. A key goes where all of this holds: the user chose the component, did not type the key, the
    component has no such key, and another component of the group has. Whatever else is unknown stays, to be refused.
    A debug file is laid over whatever was chosen, and speaks of all components of a group at once.

    Args:
        config: as Hydra composed it; changed in place.
        overrides: what was typed.
    """
    typed = {item.lstrip("+~").split("=")[0].split("@")[0] for item in overrides}
    for group, schemas in COMPONENTS.items():
        node = config.get(group)
        if (group not in typed and "debug" not in typed) or not isinstance(node, DictConfig):
            continue
        known = _own_keys(group, str(node.get("_target_")))
        others = {field.name for schema in schemas for field in dataclasses.fields(schema)}
        idle = [key for key in node if known is not None and key not in known and key in others]
        with open_dict(node):
            for key in idle:
                if not any(name == f"{group}.{key}" or name.startswith(f"{group}.{key}.") for name in typed):
                    del node[key]
    _count_for_yourself(config, typed)
    return config


def _count_for_yourself(config: DictConfig, typed: set[str]) -> None:
    """Drops the number of classes that an experiment gives for plans, where the folder that holds them is there."""
    node = config.get("benchmark")
    root = node.get("root") if isinstance(node, DictConfig) and "n_classes" in node else None
    if isinstance(root, str) and "benchmark.n_classes" not in typed and Path(root).expanduser().is_dir():
        with open_dict(config):
            config.benchmark.n_classes = None


def _own_keys(group: str, target: str) -> set[str] | None:
    """Keys of the component at ``target``; None where that cannot be told."""
    from cl_runner.config.checks import NETWORK_KEYS, import_target

    for schema in COMPONENTS[group]:
        fields = {field.name: field.default for field in dataclasses.fields(schema)}
        if fields["_target_"] == target:
            return set(fields)
    try:
        parameters = inspect.signature(import_target(target, group)).parameters
    except (RequestError, TypeError, ValueError):
        return None
    if any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values()):
        return None
    return {"_target_", *parameters, *(NETWORK_KEYS if group == "backbone" else ())}
