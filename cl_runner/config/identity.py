"""What makes two requests the same experiment: the name of a sweep's cell."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import OmegaConf

IDLE = (
    "output_root", "quiet", "report", "data_root", "resume", "tracking", "trainer.device", "trainer.threads",
    "trainer.checkpoint_epochs", "trainer.checkpoint_minutes", "trainer.log_every", "checkpoint",
    "fail_fast", "objective", "export", "export_adapter", "benchmark.cache", "benchmark.cache_gb",
)  # fmt: skip
DIGITS = 12


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


def _without_idle(node: Any, prefix: str = "") -> Any:
    if not isinstance(node, dict):
        return node
    keys = ((key, f"{prefix}{key}") for key in node)
    return {str(key): _without_idle(node[key], f"{path}.") for key, path in keys if path not in IDLE}
