"""The typed keys of every built-in adapter; see `components.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cl_runner.config.options import LARGEST, MOST_CLASSES, MOST_RANKS, option

INFERENCE = ("auto", "oracle", "max_output", "entropy", "prototype")


@dataclass
class NoAdapter:
    """Everything trains."""

    _target_: str = "cl_runner.adapters.none.NoAdapter"


@dataclass
class Deltas:
    """Keys that every adapter with deltas shares."""

    rank: int = option(4, low=1, high=MOST_RANKS)
    linear_rank: int | None = option(None, low=1, high=MOST_RANKS)
    base: str = option("auto", choices=("auto", "frozen", "first_task"))
    full: list[str] = option([])
    compute: str = option("auto", choices=("auto", "two_path", "merged"))


@dataclass
class ConvLoRA(Deltas):
    """Per-task ConvLoRA."""

    _target_: str = "cl_runner.adapters.convlora.ConvLoRA"
    alpha: float | None = option(None, above=0, high=LARGEST)
    task_inference: str = option("auto", choices=INFERENCE)


@dataclass
class ConvLoRACP(ConvLoRA):
    """Its separable form."""

    _target_: str = "cl_runner.adapters.convlora_cp.ConvLoRACP"
    rank: int = option(1, low=1, high=MOST_RANKS)
    shared_spatial: bool = False


@dataclass
class SharedLoRA(Deltas):
    """Keys of LoRA and of what builds on it."""

    alpha: float | None = option(None, above=0, high=LARGEST)
    dropout: float = option(0.0, low=0, below=1)
    eval_rank: int | None = option(None, low=1, high=MOST_RANKS)
    eval_ranks: list[int] = option([], low=1, high=MOST_RANKS)
    eval_ranks_at: str = option("last", choices=("last", "every_task"))


@dataclass
class LoRA(SharedLoRA):
    """LoRA, one set or one per task."""

    _target_: str = "cl_runner.adapters.lora.LoRA"
    sharing: str = option("shared", choices=("shared", "per_task"))
    task_inference: str = option("auto", choices=INFERENCE)


@dataclass
class DyLoRA(LoRA):
    """LoRA with ordered components."""

    _target_: str = "cl_runner.adapters.dylora.DyLoRA"
    rank: int = option(8, low=1, high=MOST_RANKS)
    training: str = option("ordering", choices=("ordering", "random_rank"))
    lambda_order: float = option(1e-4, low=0, high=LARGEST)
    update: str = option("all", choices=("all", "last"))
    rank_schedule: list[int] = option([], low=1, high=MOST_RANKS)
    schedule_from: int = option(1, low=1, high=MOST_CLASSES)


@dataclass
class DCLoRA(SharedLoRA):
    """LoRA that keeps its direction."""

    _target_: str = "cl_runner.adapters.dclora.DCLoRA"
    rank: int = option(8, low=1, high=MOST_RANKS)
    lambda_dc: float = option(0.1, low=0, high=LARGEST)


@dataclass
class Hybrid(SharedLoRA):
    """Both."""

    _target_: str = "cl_runner.adapters.dclora.Hybrid"
    rank: int = option(8, low=1, high=MOST_RANKS)
    lambda_order: float = option(1e-4, low=0, high=LARGEST)
    lambda_dc: float = option(0.1, low=0, high=LARGEST)
    rank_schedule: list[int] = option([], low=1, high=MOST_RANKS)
    schedule_from: int = option(2, low=1, high=MOST_CLASSES)


@dataclass
class CoDyRA(Deltas):
    """Gated deltas, merged after every task."""

    _target_: str = "cl_runner.adapters.codyra.CoDyRA"
    rank: int = option(16, low=1, high=MOST_RANKS)
    kappa_max: float = option(0.005, low=0, high=LARGEST)
    dense_fraction: float = option(0.5, low=0, below=1)
    threshold: str = option("soft", choices=("soft", "released"))


@dataclass
class SenaCNN:
    """A frozen trunk and a branch per task."""

    _target_: str = "cl_runner.adapters.senacnn.SenaCNN"
    cut: float | str = option(0.5, above=0, below=1)
    branch_init: str = option("first_task", choices=("scratch", "first_task"))
    base: str = option("auto", choices=("auto", "frozen", "first_task"))
    task_inference: str = option("auto", choices=INFERENCE)


@dataclass
class PEFT:
    """Any method of the PEFT library."""

    _target_: str = "cl_runner.adapters.peft.PEFT"
    method: str = "lora"
    options: dict[str, Any] = option({})
    sharing: str = option("shared", choices=("shared", "per_task"))
    base: str = option("auto", choices=("auto", "frozen", "first_task"))
    task_inference: str = option("auto", choices=INFERENCE)


ADAPTERS: tuple[type, ...] = (NoAdapter, LoRA, ConvLoRA, ConvLoRACP, DyLoRA, DCLoRA, Hybrid, CoDyRA, SenaCNN, PEFT)
PLACED_NOWHERE = {getattr(schema, "_target_"): name for name, schema in (("none", NoAdapter), ("senacnn", SenaCNN))}  # noqa: B009
KEEPS_LAST = {CoDyRA._target_: "codyra"}  # adapters that go to the end of a task, whatever the validation says
