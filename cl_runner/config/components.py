"""The typed keys of every built-in component: one dataclass a `_target_`.

A dataclass mirrors the keyword-only constructor that its `_target_` names (a test holds the two together), so
that a wrong key, type or value is refused before torch is imported. A user's own component needs no entry
here: its keys are checked against its constructor (`checks.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from cl_runner.config.adapters import ADAPTERS
from cl_runner.config.options import option

# ---------------------------------------------------------------------------------------------- benchmarks


@dataclass
class ClassSplit:
    """Keys that every benchmark split by class shares."""

    n_tasks: int = option(5, low=1)
    first_task_classes: int | None = option(None, low=1)
    class_order_seed: int | None = option(None, low=0)
    task_labels: bool = True
    validation_fraction: float = option(0.1, low=0.0, below=1.0)
    per_class: int | None = option(None, low=1)
    split_seed: int = option(0, low=0)
    root: str | None = None
    augmentation: str = option("none", choices=("none", "flip", "crop", "crop_flip"))


@dataclass
class SplitDigits(ClassSplit):
    """scikit-learn's digits."""

    _target_: str = "cl_runner.benchmarks.classes.SplitDigits"


@dataclass
class SplitMNIST(ClassSplit):
    """MNIST."""

    _target_: str = "cl_runner.benchmarks.classes.SplitMNIST"


@dataclass
class SplitCIFAR10(ClassSplit):
    """CIFAR-10."""

    _target_: str = "cl_runner.benchmarks.classes.SplitCIFAR10"


@dataclass
class SplitCIFAR100(ClassSplit):
    """CIFAR-100."""

    _target_: str = "cl_runner.benchmarks.classes.SplitCIFAR100"


@dataclass
class SplitCUB200(ClassSplit):
    """CUB-200-2011."""

    _target_: str = "cl_runner.benchmarks.classes.SplitCUB200"
    image_size: int = option(224, low=8)


@dataclass
class SplitFolder(ClassSplit):
    """A user's tree of class folders."""

    _target_: str = "cl_runner.benchmarks.classes.SplitFolder"
    image_size: int = option(32, low=4)
    n_classes: int | None = option(None, low=1)


# ----------------------------------------------------------------------------------------------- backbones


@dataclass
class Backbone:
    """Keys that every image backbone shares."""

    name: str = ""
    pretrained: bool | str = False
    head: str = option("auto", choices=("auto", "shared", "per_task"))
    head_classes: str = option("all", choices=("all", "task"))


@dataclass
class SmallCNN(Backbone):
    """The small network for small images."""

    _target_: str = "cl_runner.backbones.small.SmallCNN"
    name: str = "small_cnn"
    layers: int = option(2, low=1, high=8)
    width: int = option(32, low=1)


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
    mem_size: int = option(500, low=1)
    batch_size_mem: int | None = option(None, low=1)


@dataclass
class DER:
    """Dark experience replay."""

    _target_: str = "cl_runner.strategies.rehearsal.DER"
    mem_size: int = option(500, low=1)
    batch_size_mem: int | None = option(None, low=1)
    alpha: float = option(0.1, low=0)
    beta: float = option(0.5, low=0)


@dataclass
class ICaRL:
    """iCaRL."""

    _target_: str = "cl_runner.strategies.rehearsal.ICaRL"
    mem_size: int = option(500, low=1)


@dataclass
class GEM:
    """Gradient episodic memory."""

    _target_: str = "cl_runner.strategies.rehearsal.GEM"
    mem_size: int = option(500, low=1)
    memory_strength: float = option(0.5, low=0)


@dataclass
class AGEM:
    """Averaged GEM."""

    _target_: str = "cl_runner.strategies.rehearsal.AGEM"
    mem_size: int = option(500, low=1)
    sample_size: int = option(64, low=1)


@dataclass
class EWC:
    """Elastic weight consolidation."""

    _target_: str = "cl_runner.strategies.regularisation.EWC"
    ewc_lambda: float = option(100.0, low=0)
    variant: str = option("separate", choices=("separate", "online"))
    decay_factor: float = option(0.9, low=0, high=1)


@dataclass
class LwF:
    """Learning without forgetting."""

    _target_: str = "cl_runner.strategies.regularisation.LwF"
    alpha: float = option(1.0, low=0)
    temperature: float = option(2.0, above=0)


@dataclass
class SI:
    """Synaptic intelligence."""

    _target_: str = "cl_runner.strategies.regularisation.SI"
    si_lambda: float = option(1.0, low=0)
    eps: float = option(1e-3, above=0)


# -------------------------------------------------------------------------------- optimisers and schedules


@dataclass
class SGD:
    """torch's SGD."""

    _target_: str = "torch.optim.SGD"
    lr: float = option(0.05, above=0)
    momentum: float = option(0.9, low=0, below=1)
    weight_decay: float = option(0.0, low=0)
    nesterov: bool = False


@dataclass
class Adam:
    """torch's Adam."""

    _target_: str = "torch.optim.Adam"
    lr: float = option(1e-3, above=0)
    betas: list[float] = option([0.9, 0.999], low=0, below=1)
    eps: float = option(1e-8, above=0)
    weight_decay: float = option(0.0, low=0)


@dataclass
class AdamW(Adam):
    """torch's AdamW."""

    _target_: str = "torch.optim.AdamW"
    weight_decay: float = option(0.01, low=0)


@dataclass
class Constant:
    """The learning rate stays."""

    _target_: str = "cl_runner.training.schedules.Constant"


@dataclass
class Cosine:
    """Half a cosine over the task, step by step."""

    _target_: str = "cl_runner.training.schedules.Cosine"
    min_lr: float = option(0.0, low=0)


@dataclass
class MultiStep:
    """Drops at given epochs."""

    _target_: str = "cl_runner.training.schedules.MultiStep"
    milestones: list[int] = option([10, 15], low=1)
    gamma: float = option(0.1, above=0, high=1)


@dataclass
class Plateau:
    """Drops when the validation loss stops falling."""

    _target_: str = "cl_runner.training.schedules.Plateau"
    factor: float = option(0.1, above=0, below=1)
    patience: int = option(4, low=0)
    min_lr: float = option(0.0, low=0)


COMPONENTS: dict[str, tuple[type, ...]] = {
    "benchmark": (SplitDigits, SplitMNIST, SplitCIFAR10, SplitCIFAR100, SplitCUB200, SplitFolder),
    "backbone": (SmallCNN, PytorchCV, TorchVision),
    "adapter": ADAPTERS,
    "strategy": (Naive, Cumulative, Joint, Replay, DER, ICaRL, GEM, AGEM, EWC, LwF, SI),
    "optimizer": (SGD, Adam, AdamW),
    "scheduler": (Constant, Cosine, MultiStep, Plateau),
}
