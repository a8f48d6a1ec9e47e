"""The typed shape of a request: the keys of `configs/run.yaml` and of the groups that have no `_target_`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cl_runner.config.options import MOST_EPOCHS, MOST_SAMPLES, MOST_STEPS, MOST_TRACED, SEEDS, option


@dataclass
class Trainer:
    """How a task is trained (`trainer`)."""

    epochs: int = option(20, low=1, high=MOST_EPOCHS)
    task_epochs: list[int] | None = option(None, low=1, high=MOST_EPOCHS)
    iterations: int | None = option(None, low=1, high=MOST_STEPS)
    batch_size: int = option(64, low=1, high=MOST_SAMPLES)
    eval_batch_size: int | None = option(None, low=1, high=MOST_SAMPLES)
    device: str = option("auto", choices=("auto", "cpu", "cuda", "mps"))
    threads: int | None = option(None, low=1, high=1024)
    precision: str = option("float32", choices=("float32", "bfloat16"))
    channels_last: bool | str = option("auto", choices=(True, False, "auto"))
    compile: bool | str = option("auto", choices=(True, False, "auto"))
    deterministic: bool = False
    patience: int | None = option(None, low=1, high=MOST_EPOCHS)
    restore_best: bool = True
    reset_optimizer: bool = True
    label_smoothing: float = option(0.0, low=0.0, below=1.0)
    data_placement: str = option("auto", choices=("auto", "device", "host"))
    checkpoint_epochs: int | None = option(None, low=1, high=MOST_EPOCHS)
    checkpoint_minutes: float | None = option(5.0, low=0, high=100_000)
    log_every: int | None = option(None, low=1, high=MOST_STEPS)
    prefix_cache: bool = True
    cache_gb: float = option(4.0, above=0, high=100_000)
    profile: bool = False
    trace_steps: int | None = option(None, low=1, high=MOST_TRACED)


@dataclass
class Placement:
    """Which layers get an adapter (`placement`)."""

    kinds: list[str] = option(["conv", "linear"], choices=("conv", "linear"))
    roles: list[str] | None = option(None, choices=("q", "k", "v", "o", "mlp_in", "mlp_out"))
    towers: list[str] = option(["vision", "text"], choices=("vision", "text"))
    part: str = option("all", choices=("all", "first_half", "last_half"))
    pattern: str | None = None
    names: list[str] | None = None
    head: bool = False


@dataclass
class Wandb:
    """What Weights & Biases is told, and as whose run (`tracking.wandb`)."""

    mode: str = option("auto", choices=("auto", "online", "offline", "disabled"))
    project: str = "cl-run"
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    name: str | None = None
    tags: list[str] = option([])
    artifacts: bool = False
    timeout: float = option(20.0, low=1, high=86_400)


@dataclass
class Tracking:
    """Where logged values go besides the run folder (`tracking`)."""

    csv: bool = False
    wandb: Wandb | None = None


@dataclass
class Run:
    """The whole request."""

    mode: str = option("train", choices=("train", "plan", "eval"))
    seed: int = option(0, low=0, high=SEEDS)
    evaluate: str = option("full", choices=("full", "seen", "last"))
    evaluate_unchanged: str = option("measure", choices=("measure", "carry"))
    resume: str | None = option(None, path=True)
    checkpoint: str | None = option(None, path=True)
    on_nan: str = option("stop", choices=("stop", "skip"))
    on_bad_sample: str = option("stop", choices=("stop", "skip"))
    export: str | None = option(None, path=True)
    export_adapter: str | None = option(None, path=True)
    data_root: str | None = option(None, path=True)
    output_root: str = option("outputs", path=True)
    quiet: bool = False
    report: bool = True
    fail_fast: bool = False
    objective: str | None = None
    benchmark: Any = None
    backbone: Any = None
    adapter: Any = None
    placement: Any = None
    strategy: Any = None
    optimizer: Any = None
    scheduler: Any = None
    trainer: Any = None
    tracking: Any = None
