"""Whether a request keeps a part of its training data for validation, as far as its keys say it."""

from __future__ import annotations

from omegaconf import DictConfig


def holds_out(benchmark: DictConfig) -> bool:
    """Whether a part of the training data is kept for validation, or the files bring one."""
    if benchmark.get("validation_split"):
        return True
    return float(benchmark.get("validation_fraction") or 0.0) > 0 and not one_of_each(benchmark)


def no_validation(benchmark: DictConfig) -> str:
    """Why nothing is held out."""
    alone = one_of_each(benchmark)
    return f"{alone} leaves nothing to hold out" if alone else "benchmark.validation_fraction is 0"


def one_of_each(benchmark: DictConfig) -> str:
    """The key by which every class has one training image alone; empty where there is none."""
    return next((f"benchmark.{key}=1" for key in ("per_class", "shots", "n_train") if benchmark.get(key) == 1), "")
