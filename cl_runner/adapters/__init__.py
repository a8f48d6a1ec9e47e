"""Adapters: one file a method. Names are loaded when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Adapter": "adapter",
    "CoDyRA": "codyra",
    "ConvLoRA": "convlora",
    "ConvLoRACP": "convlora_cp",
    "DCLoRA": "dclora",
    "Delta": "factors",
    "DeltaAdapter": "delta_adapter",
    "DyLoRA": "dylora",
    "Hybrid": "dclora",
    "LoRA": "lora",
    "LowRank": "factors",
    "NoAdapter": "none",
    "PEFT": "peft",
    "PerTaskAdapter": "per_task",
    "Placement": "placement",
    "SenaCNN": "senacnn",
    "load_peft": "interchange",
    "save_peft": "interchange",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"cl_runner.adapters.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'cl_runner.adapters' has no attribute '{name}'")
