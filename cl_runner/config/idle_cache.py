"""Which requests have no use for the cache of what frozen layers give."""

from __future__ import annotations

from omegaconf import DictConfig

OURS = "cl_runner.strategies."
USES_IMAGES_ONCE = ("Naive", "EWC", "SI")  # strategies that take a batch to the network and nowhere else


def of_cache(config: DictConfig) -> list[tuple[str, bool, str, str]]:
    """Keys of the cache that another choice puts out of use: (key, whether it is, why, what would work)."""
    target, backbone = str(config.strategy._target_), config.backbone
    own, name = target.startswith(OURS), target.rpartition(".")[2]
    looks = own and name not in USES_IMAGES_ONCE and "templates" not in backbone
    found = [("trainer.cache_gb", not config.trainer.prefix_cache, "trainer.prefix_cache is false", "set it to true")]
    for key in ("trainer.prefix_cache", "trainer.cache_gb"):
        found += [
            (key, "tokenizer" in backbone, "a language model has no cache of frozen layers", "drop it"),
            (key, looks, f"{name} needs the images of every batch", "drop it, or use strategy=naive, ewc or si"),
        ]
    return found
