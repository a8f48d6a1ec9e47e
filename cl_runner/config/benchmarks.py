"""The typed keys of every built-in benchmark; see `components.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cl_runner.config.options import MOST_CLASSES, MOST_PIXELS, MOST_SAMPLES, MOST_TOKENS, SEEDS, option


@dataclass
class ClassSplit:
    """Keys that every benchmark split by class shares."""

    n_tasks: int = option(5, low=1, high=MOST_CLASSES)
    first_task_classes: int | None = option(None, low=1, high=MOST_CLASSES)
    class_order_seed: int | None = option(None, low=0, high=SEEDS)
    task_labels: bool = True
    validation_fraction: float = option(0.1, low=0.0, below=1.0)
    per_class: int | None = option(None, low=1, high=MOST_SAMPLES)
    split_seed: int = option(0, low=0, high=SEEDS)
    root: str | None = option(None, path=True)
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
    image_size: int = option(224, low=8, high=MOST_PIXELS)


@dataclass
class SplitFolder(ClassSplit):
    """A user's tree of class folders."""

    _target_: str = "cl_runner.benchmarks.classes.SplitFolder"
    image_size: int = option(32, low=4, high=MOST_PIXELS)
    n_classes: int | None = option(None, low=1, high=MOST_CLASSES)


@dataclass
class MTIL:
    """A task a domain, its classes the candidates."""

    _target_: str = "cl_runner.benchmarks.domains.streams.MTIL"
    domains: list[Any] | None = None
    order: str = option("I", choices=("I", "II"))
    shots: int | None = option(None, low=1, high=MOST_SAMPLES)
    splits: dict[str, Any] = option({})
    prompts: dict[str, Any] = option({})
    probe_domains: list[Any] = option([])
    task_labels: bool = True
    validation_fraction: float = option(0.0, low=0.0, below=1.0)
    validation_split: bool = False
    test_per_class: int | None = option(None, low=1, high=MOST_SAMPLES)
    split_seed: int = option(0, low=0, high=SEEDS)
    root: str | None = option(None, path=True)
    image_size: int | None = option(None, low=8, high=MOST_PIXELS)
    augmentation: str = option("none", choices=("none", "flip", "crop", "crop_flip"))
    cache: str | None = option(None, path=True)
    cache_gb: float = option(64.0, low=0.0, high=1e6)


@dataclass
class XTAIL(MTIL):
    """The same, all domains' classes being candidates."""

    _target_: str = "cl_runner.benchmarks.domains.streams.XTAIL"
    task_labels: bool = False


@dataclass
class Texts:
    """Keys that every stream of texts shares."""

    n_train: int | None = option(None, low=1, high=MOST_SAMPLES)
    n_test: int | None = option(None, low=1, high=MOST_SAMPLES)
    split_seed: int = option(0, low=0, high=SEEDS)
    validation_fraction: float = option(0.0, low=0.0, below=1.0)
    task_labels: bool = True
    root: str | None = option(None, path=True)
    cache: str | None = option(None, path=True)


@dataclass
class ImdbYelp(Texts):
    """Reviews of films, then of everything else."""

    _target_: str = "cl_runner.benchmarks.text.streams.ImdbYelp"
    n_train: int | None = option(3000, low=1, high=MOST_SAMPLES)
    n_test: int | None = option(1000, low=1, high=MOST_SAMPLES)
    length: int = option(128, low=4, high=MOST_TOKENS)
    long_texts: str = option("truncate", choices=("truncate", "pack", "refuse"))
    split_seed: int = option(42, low=0, high=SEEDS)


@dataclass
class TextDomains(Texts):
    """A user's own files of texts, or of prompts and answers."""

    _target_: str = "cl_runner.benchmarks.text.streams.TextDomains"
    domains: list[Any] = option([])
    length: int = option(128, low=4, high=MOST_TOKENS)
    long_texts: str = option("truncate", choices=("truncate", "pack", "refuse"))
    prompt_length: int = option(1024, low=1, high=MOST_TOKENS)
    answer_length: int = option(512, low=2, high=MOST_TOKENS)


@dataclass
class Trace(Texts):
    """TRACE's eight tasks, each with a score of its own."""

    _target_: str = "cl_runner.benchmarks.text.streams.Trace"
    domains: list[str] | None = None
    prompt_length: int = option(1024, low=1, high=MOST_TOKENS)
    answer_length: int = option(512, low=2, high=MOST_TOKENS)
    validation_split: bool = False


BENCHMARKS = (
    SplitDigits,
    SplitMNIST,
    SplitCIFAR10,
    SplitCIFAR100,
    SplitCUB200,
    SplitFolder,
    MTIL,
    XTAIL,
    ImdbYelp,
    TextDomains,
    Trace,
)
