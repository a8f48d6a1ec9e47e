"""What makes two requests the same experiment: the name of a sweep's cell."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import OmegaConf

IDLE = (
    "output_root", "quiet", "report", "data_root", "resume", "tracking", "trainer.device", "trainer.threads",
    "trainer.checkpoint_epochs", "trainer.checkpoint_minutes", "trainer.log_every", "trainer.profile",
    "trainer.trace_steps", "trainer.compile", "trainer.prefix_cache", "trainer.cache_gb", "checkpoint",
    "evaluate_unchanged", "fail_fast", "objective", "export", "export_adapter", "benchmark.cache", "benchmark.cache_gb",
)  # fmt: skip
DIGITS = 12
CONFIGURATION = "the configuration"  # what checkpoints call it


def cell_hash(config: Any) -> str:
    """Names a settled configuration by what its result depends on.

    The first 12 hexadecimal digits of the SHA-256 of the configuration as JSON with sorted keys, without the keys of
    `IDLE`: where a run reads, writes and computes does not change what it measures. The same in every process and on
    every machine; of 10,000 cells two share a name with a probability of 2e-7.

    Args:
        config: a settled configuration (see `cl_runner.config.checks.settle`), or a dict of the same content.
    """
    content = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    text = json.dumps(_without_idle(content), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def what_matters(config: Any) -> dict[str, Any]:
    """A settled configuration without the keys of `IDLE` and the mode: what a run's result depends on."""
    content = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    found: dict[str, Any] = json.loads(json.dumps(_without_idle(content), default=str))
    return {key: value for key, value in found.items() if key != "mode"}


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """The keys in which two configurations differ, dotted, each with both values; None where one does not have it."""
    found = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((f"{prefix}{key}", old, new))
    return found


def _without_idle(node: Any, prefix: str = "") -> Any:
    if not isinstance(node, dict):
        return node
    keys = ((key, f"{prefix}{key}") for key in node)
    return {str(key): _without_idle(node[key], f"{path}.") for key, path in keys if path not in IDLE}
