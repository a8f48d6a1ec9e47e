"""The contract of a modality: everything in a run that depends on what a sample is."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig
from torch import Tensor, nn

from cl_runner.backbones.routing import TaskNetwork
from cl_runner.benchmarks.stream import TaskStream

if TYPE_CHECKING:
    from cl_runner.training.lane import Lane
    from cl_runner.training.meter import Meter


ON_CPU = 64  # samples evaluated at once where caches and not the memory decide: more take longer (docs/performance.md)


class Modality(ABC):
    """One run's samples, from the files to the figures.

    Attributes:
        unit: what samples are called.
        reading: what is done to them before the first task.
        totals: (sum of the losses, right answers, answers) of (logits, targets), as a tensor (3,).
        amount: answers among targets: how much a batch weighs in a mean.
    """

    unit: ClassVar[str]
    reading: ClassVar[str]
    totals: Callable[[Tensor, Tensor], Tensor]
    amount: Callable[[Tensor], Any]

    def __init__(self, config: DictConfig) -> None:
        self.config = config

    @abstractmethod
    def open(self) -> tuple[Any, TaskStream]:
        """The benchmark, told what the backbone needs to know, and its outline.

        Raises:
            RequestError: the two do not fit.
        """

    @abstractmethod
    def network(self, outline: TaskStream, *, load_weights: bool = True, task_aware: bool = False) -> TaskNetwork:
        """The backbone with its adapter attached.

        Args:
            outline: the stream that it is for.
            load_weights: False reads no weights file (`mode=plan`).
            task_aware: in the form in which Avalanche gives it the task labels of each batch.

        Raises:
            RequestError: the parts do not fit one another.
        """

    def given(self) -> dict[str, Any]:
        """Further arguments of the benchmark's `stream`."""
        return {}

    def meet(self, stream: TaskStream, network: TaskNetwork) -> None:
        """Tells the network what only the data could say."""

    @abstractmethod
    def criterion(self, network: TaskNetwork) -> nn.Module:
        """The loss of (logits, targets)."""

    @abstractmethod
    def lane(self, stream: TaskStream) -> Lane:
        """What makes the batches."""

    @abstractmethod
    def meter(self, stream: TaskStream, network: TaskNetwork) -> Meter:
        """What measures a task."""

    def eval_batch_size(self, stream: TaskStream, network: TaskNetwork) -> int:
        """Samples evaluated at once: as many as asked for, or as suit the device that the network is on."""
        wanted = self.config.trainer.eval_batch_size
        if wanted is not None:
            return int(wanted)
        device = network.anchor.device
        if device.type != "cuda":
            return ON_CPU
        from cl_runner.training.fitting import activation_bytes, fitting, memory_of

        return fitting(memory_of(device), activation_bytes(network, lambda: self.answer_one(stream, network)))

    @abstractmethod
    def answer_one(self, stream: TaskStream, network: TaskNetwork) -> None:
        """Has the network answer to one sample, whatever it holds, on its own device."""

    @abstractmethod
    def forward_flops(self, network: TaskNetwork, stream: TaskStream) -> int | None:
        """Floating-point operations of one sample's forward pass; None where they are not known."""

    def measure(self, stream: TaskStream) -> str:
        """What the entries of the accuracy matrix are called."""
        return "accuracy"

    def describe(self, stream: TaskStream, network: TaskNetwork) -> dict[str, str]:
        """The lines about benchmark and backbone that a run opens with, without their names."""
        known = "task labels" if stream.task_labels else "no task labels"
        if network.inference is not None:
            known += f", tasks told apart by {network.inference.rule}"
        return {
            "benchmark": f"{len(stream)} tasks, {stream.n_classes} classes, {known}",
            "backbone": f"{network.base_parameters:,} parameters without classifier",
        }

    def encoded_prompts(self, stream: TaskStream, network: TaskNetwork, tasks: Sequence[int]) -> int:
        """Prompts encoded with a graph at every step of these tasks."""
        return 0


def data_root(config: DictConfig) -> Path:
    """Where datasets lie: `data_root`, else $CL_DATA_ROOT, else ~/.cache/cl-runner."""
    chosen = config.data_root or os.environ.get("CL_DATA_ROOT") or "~/.cache/cl-runner"
    return Path(chosen).expanduser()
