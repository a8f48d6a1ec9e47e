"""The typed keys of every built-in component: one dataclass a `_target_`.

A dataclass mirrors the keyword-only constructor that its `_target_` names (a test holds the two together), so
that a wrong key, type or value is refused before torch is imported. A user's own component needs no entry
here: its keys are checked against its constructor (`checks.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cl_runner.config.adapters import ADAPTERS
from cl_runner.config.benchmarks import BENCHMARKS
from cl_runner.config.options import (
    LARGEST,
    MOST_BLOCKS,
    MOST_EPOCHS,
    MOST_PIXELS,
    MOST_SAMPLES,
    MOST_STEPS,
    WIDEST,
    option,
)

# ----------------------------------------------------------------------------------------------- backbones


@dataclass
class Backbone:
    """Keys that every image backbone shares."""

    name: str = option("", empty=True)
    pretrained: bool | str = option(False, path=True)
    head: str = option("auto", choices=("auto", "shared", "per_task"))
    head_classes: str = option("all", choices=("all", "task"))


@dataclass
class SmallCNN(Backbone):
    """The small network for small images."""

    _target_: str = "cl_runner.backbones.small.SmallCNN"
    name: str = "small_cnn"
    layers: int = option(2, low=1, high=8)
    width: int = option(32, low=1, high=4096)


@dataclass
class PytorchCV(Backbone):
    """A network of pytorchcv."""

    _target_: str = "cl_runner.backbones.pytorchcv.PytorchCV"
    stem: str = option("auto", choices=("auto", "original", "small"))


@dataclass
class TorchVision(Backbone):
    """A network of torchvision."""

    _target_: str = "cl_runner.backbones.torchvision.TorchVision"
    stem: str = option("auto", choices=("auto", "original", "small"))


@dataclass
class OpenCLIP(Backbone):
    """A vision-language network of open_clip."""

    _target_: str = "cl_runner.backbones.open_clip.OpenCLIP"
    config: str | None = option(None, path=True)
    weights: str | None = None
    layers: int | None = option(None, low=1, high=MOST_BLOCKS)
    width: int | None = option(None, low=64, high=WIDEST)
    patch_size: int | None = option(None, low=1, high=MOST_PIXELS)
    quick_gelu: bool | None = None
    templates: str = option("dataset", choices=("dataset", "simple", "openai"))
    frozen: list[str] = option([], choices=("vision", "text"))
    train_logit_scale: bool = False


@dataclass
class Transformers:
    """A causal language model of transformers."""

    _target_: str = "cl_runner.backbones.transformers.Transformers"
    name: str = option("", empty=True)
    pretrained: bool | str = option(False, path=True)
    layers: int | None = option(None, low=1, high=MOST_BLOCKS)
    width: int | None = option(None, low=2, high=WIDEST)
    tokenizer: str | None = option(None, path=True)
    options: dict[str, Any] = option({})
    vocab_size: int | None = option(None, low=8, high=10**8)
    gradient_checkpointing: bool = False
    dtype: str = option("float32", choices=("float32", "bfloat16"))


# ---------------------------------------------------------------------------------------------- strategies


@dataclass
class Naive:
    """Plain fine-tuning."""

    _target_: str = "cl_runner.strategies.baselines.Naive"


@dataclass
class Cumulative:
    """Training on everything seen."""

    _target_: str = "cl_runner.strategies.baselines.Cumulative"


@dataclass
class Joint:
    """Training on the whole stream at once."""

    _target_: str = "cl_runner.strategies.baselines.Joint"


@dataclass
class Replay:
    """Experience replay."""

    _target_: str = "cl_runner.strategies.rehearsal.Replay"
    mem_size: int = option(500, low=1, high=MOST_SAMPLES)
    batch_size_mem: int | None = option(None, low=1, high=MOST_SAMPLES)


@dataclass
class DER:
    """Dark experience replay."""

    _target_: str = "cl_runner.strategies.rehearsal.DER"
    mem_size: int = option(500, low=1, high=MOST_SAMPLES)
    batch_size_mem: int | None = option(None, low=1, high=MOST_SAMPLES)
    alpha: float = option(0.1, low=0, high=LARGEST)
    beta: float = option(0.5, low=0, high=LARGEST)


@dataclass
class ICaRL:
    """iCaRL."""

    _target_: str = "cl_runner.strategies.rehearsal.ICaRL"
    mem_size: int = option(500, low=1, high=MOST_SAMPLES)


@dataclass
class GEM:
    """Gradient episodic memory."""

    _target_: str = "cl_runner.strategies.rehearsal.GEM"
    mem_size: int = option(500, low=1, high=MOST_SAMPLES)
    memory_strength: float = option(0.5, low=0, high=LARGEST)


@dataclass
class AGEM:
    """Averaged GEM."""

    _target_: str = "cl_runner.strategies.rehearsal.AGEM"
    mem_size: int = option(500, low=1, high=MOST_SAMPLES)
    sample_size: int = option(64, low=1, high=MOST_SAMPLES)


@dataclass
class EWC:
    """Elastic weight consolidation."""

    _target_: str = "cl_runner.strategies.regularisation.EWC"
    ewc_lambda: float = option(100.0, low=0, high=LARGEST)
    variant: str = option("separate", choices=("separate", "online"))
    decay_factor: float = option(0.9, low=0, high=1)


@dataclass
class LwF:
    """Learning without forgetting."""

    _target_: str = "cl_runner.strategies.regularisation.LwF"
    alpha: float = option(1.0, low=0, high=LARGEST)
    temperature: float = option(2.0, above=0, high=LARGEST)


@dataclass
class SI:
    """Synaptic intelligence."""

    _target_: str = "cl_runner.strategies.regularisation.SI"
    si_lambda: float = option(1.0, low=0, high=LARGEST)
    eps: float = option(1e-3, above=0, high=LARGEST)


@dataclass
class ZeroShot:
    """The network as it is."""

    _target_: str = "cl_runner.strategies.vision_language.ZeroShot"


@dataclass
class WiseFT:
    """Interpolation between the trained and a reference model."""

    _target_: str = "cl_runner.strategies.vision_language.WiseFT"
    alpha: float = option(0.8, above=0, high=1)
    reference: str = option("previous", choices=("previous", "initial"))


@dataclass
class ZSCL:
    """Distillation on reference data and weight averaging."""

    _target_: str = "cl_runner.strategies.vision_language.ZSCL"
    reference_images: str | None = option(None, path=True)
    reference_texts: str | None = option(None, path=True)
    reference_size: int = option(100_000, low=1, high=MOST_SAMPLES)
    batch_size_ref: int = option(64, low=1, high=MOST_SAMPLES)
    distillation: float = option(1.0, low=0, high=LARGEST)
    temperature: float = option(2.0, above=0, high=LARGEST)
    teacher: str = option("initial", choices=("initial", "previous"))
    average_every: int | None = option(100, low=1, high=MOST_STEPS)
    consistency: float = option(1.0, low=0, high=LARGEST)


@dataclass
class RAIL:
    """Recursive ridge regression beside zero-shot."""

    _target_: str = "cl_runner.strategies.vision_language.RAIL"
    hidden: int = option(15_000, low=1, high=1_000_000)
    ridge: float = option(0.1, above=0, high=LARGEST)
    beta: float = option(0.8, low=0, high=1)
    dtype: str = option("float32", choices=("float32", "float64"))


# -------------------------------------------------------------------------------- optimisers and schedules


@dataclass
class SGD:
    """torch's SGD."""

    _target_: str = "torch.optim.SGD"
    lr: float = option(0.05, above=0, high=LARGEST)
    momentum: float = option(0.9, low=0, below=1)
    weight_decay: float = option(0.0, low=0, high=LARGEST)
    nesterov: bool = False


@dataclass
class Adam:
    """torch's Adam."""

    _target_: str = "torch.optim.Adam"
    lr: float = option(1e-3, above=0, high=LARGEST)
    betas: list[float] = option([0.9, 0.999], low=0, below=1)
    eps: float = option(1e-8, above=0, high=LARGEST)
    weight_decay: float = option(0.0, low=0, high=LARGEST)


@dataclass
class AdamW(Adam):
    """torch's AdamW."""

    _target_: str = "torch.optim.AdamW"
    weight_decay: float = option(0.01, low=0, high=LARGEST)


@dataclass
class Constant:
    """The learning rate stays."""

    _target_: str = "cl_runner.training.schedules.Constant"


@dataclass
class Cosine:
    """Half a cosine over the task, step by step."""

    _target_: str = "cl_runner.training.schedules.Cosine"
    min_lr: float = option(0.0, low=0, high=LARGEST)


@dataclass
class MultiStep:
    """Drops at given epochs."""

    _target_: str = "cl_runner.training.schedules.MultiStep"
    milestones: list[int] = option([10, 15], low=1, high=MOST_EPOCHS)
    gamma: float = option(0.1, above=0, high=1)


@dataclass
class Plateau:
    """Drops when the validation loss stops falling."""

    _target_: str = "cl_runner.training.schedules.Plateau"
    factor: float = option(0.1, above=0, below=1)
    patience: int = option(4, low=0, high=MOST_EPOCHS)
    min_lr: float = option(0.0, low=0, high=LARGEST)


COMPONENTS: dict[str, tuple[type, ...]] = {
    "benchmark": BENCHMARKS,
    "backbone": (SmallCNN, PytorchCV, TorchVision, OpenCLIP, Transformers),
    "adapter": ADAPTERS,
    "strategy": (
        *(Naive, Cumulative, Joint, Replay, DER, ICaRL, GEM, AGEM, EWC, LwF, SI),
        *(ZeroShot, WiseFT, ZSCL, RAIL),
    ),
    "optimizer": (SGD, Adam, AdamW),
    "scheduler": (Constant, Cosine, MultiStep, Plateau),
}
