"""Small streams of random images, trained as `cl-run` trains them, with every step's loss and every call counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from cl_runner.assembly import build_strategy
from cl_runner.backbones.backbone import classifier_name
from cl_runner.backbones.network import Network
from cl_runner.benchmarks.avalanche_view import avalanche_benchmark
from cl_runner.benchmarks.store import ImageStore, Part
from cl_runner.benchmarks.stream import Task, TaskStream
from cl_runner.config.checks import build, settle
from cl_runner.config.compose import compose
from cl_runner.stage import assemble
from cl_runner.training import features
from cl_runner.training.task_aware import TaskAwareNetwork

CLASSES = 2  # of a task


@dataclass
class Nobody:
    """A listener that keeps the losses."""

    losses: list[float] = field(default_factory=list)
    validation: list[Any] = field(default_factory=list)

    def task_started(self, *values: Any) -> None: ...

    def batch(self, n_images: int) -> None: ...

    def steps(self, task: int, epoch: int, losses: Sequence[tuple[int, float]]) -> None:
        self.losses += [loss for _, loss in losses]

    def epoch_finished(self, *values: Any, validation_loss: Any = None, **named: Any) -> None:
        self.validation.append(validation_loss)


@dataclass
class Outcome:
    """What a run gave.

    Attributes:
        losses: of every step.
        validation: loss of every epoch.
        weights: all parameters and buffers at the end.
        matrix: accuracies after each task.
        answers: logits of all images at the end, under the last task.
        seen: samples that the network's first convolution computed, by task: in steps, besides them while the task was
            trained, and while all tasks were evaluated after it; apart from the search for a cut.
        strategy: Avalanche's.
    """

    losses: list[float]
    validation: list[Any]
    weights: dict[str, Tensor]
    matrix: list[list[float]]
    answers: Tensor
    seen: list[dict[str, int]]
    strategy: Any

    @property
    def in_steps(self) -> list[int]:
        """Samples that went through the whole network in the steps of each task."""
        return [counts["steps"] for counts in self.seen]


def stream(n_tasks: int, n: int, size: int, augmentation: str, validation: int, labels: bool = True) -> TaskStream:
    """Tasks of n training, ``validation`` held-out and 6 test images, each class with a tone of its own."""
    draws = np.random.default_rng(0)
    each = n + validation + 6
    classes = np.concatenate([np.arange(each) % CLASSES + CLASSES * task for task in range(n_tasks)])
    tones = draws.integers(40, 200, (CLASSES * n_tasks, 1, 1, 3))
    images = (tones[classes] + draws.integers(-40, 40, (len(classes), size, size, 3))).astype(np.uint8)
    owners = np.repeat(np.arange(n_tasks), each) if labels else np.zeros(len(classes), dtype=np.int64)
    store = ImageStore(images=images, labels=classes, tasks=owners, mean=(0.5,) * 3, std=(0.25,) * 3)
    tasks = []
    for task in range(n_tasks):
        places = torch.arange(each) + task * each
        parts = [Part(store, part, task) for part in places.split([n, validation, 6])]
        own = tuple(range(CLASSES * task, CLASSES * (task + 1)))
        words = tuple(map(str, own))
        tasks.append(Task(task, f"task_{task}", own, words, n, 6, parts[0], parts[1] if validation else None, parts[2]))
    n_classes = CLASSES * n_tasks
    return TaskStream(
        "bench", tuple(tasks), labels, n_classes, (3, size, size), tuple(range(n_classes)), augmentation, store
    )


def network(
    backbone: nn.Module, adapter: Any, placement: Any, n_tasks: int, config: Any, inference: str | None
) -> Network:
    """The backbone with its head and its adapter; with task labels, or with a rule that infers the task."""
    n_classes = CLASSES * n_tasks
    kind = TaskAwareNetwork if inference is None else Network
    net = kind(
        backbone,
        classifier_name(backbone, n_classes),
        task_classes=[range(CLASSES * task, CLASSES * (task + 1)) for task in range(n_tasks)],
        task_labels=inference is None,
        task_inference=inference,
        head="per_task" if adapter.per_task else "shared",
        precision=config.trainer.precision,
    )
    net.adapter = adapter
    adapter.attach(net, placement)
    return net


class Counter:
    """Counts the samples that the first convolution computes, by what they are computed for."""

    def __init__(self, net: nn.Module) -> None:
        self.counts: dict[str, int] = {}
        self.what = "besides"
        first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if "forward" not in vars(module):  # else it answers without computing
            self.counts[self.what] = self.counts.get(self.what, 0) + len(output)

    def during(self, what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, in which samples are counted for ``what``."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            before, self.what = self.what, what
            try:
                return call(*args, **kwargs)
            finally:
                self.what = before

        return counted

    def taken(self) -> dict[str, int]:
        """The counts since the last time."""
        found = {what: self.counts.get(what, 0) for what in ("steps", "besides", "evaluation")}
        self.counts.clear()
        return found


def learn(
    make: Callable[[int], nn.Module],
    adapter: Callable[[], Any],
    *typed: str,
    placement: Any = "all",
    n_tasks: int = 3,
    n: int = 12,
    size: int = 8,
    augmentation: str = "none",
    validation: int = 0,
    inference: str | None = None,
    watch: Callable[[Any], None] = lambda strategy: None,
) -> Outcome:
    """Learns all tasks.

    Args:
        make: the backbone for a number of classes.
        adapter: makes the adapter.
        typed: overrides of the request.
        placement: of the adapter.
        n_tasks, n, size: tasks, training images of each, pixels.
        augmentation, validation: of the stream.
        inference: rule of task inference; None: with task labels.
        watch: is given the strategy before the first task.
    """
    given = {item.split("=")[0] for item in typed}
    usual = ("trainer.epochs=3", "trainer.batch_size=4", "trainer.log_every=1", "optimizer=sgd", "optimizer.lr=0.05",
             "optimizer.momentum=0.9", "trainer.eval_batch_size=4", "trainer.threads=1")  # fmt: skip
    config = settle(compose(["adapter=none", *[item for item in usual if item.split("=")[0] not in given], *typed]))
    torch.manual_seed(0)
    tasks = stream(n_tasks, n, size, augmentation, validation, inference is None)
    net = network(make(CLASSES * n_tasks), adapter(), placement, n_tasks, config, inference)
    if config.trainer.channels_last:
        net.to(memory_format=torch.channels_last)
    recipe, workshop = build_strategy(config, tasks, net)
    listener = Nobody()
    _, meter, strategy = assemble(config, tasks, recipe, workshop, listener)
    watch(strategy)
    counter = Counter(net)
    strategy.step.learn = counter.during("steps", strategy.step.learn)
    evaluate = counter.during("evaluation", strategy.eval)
    scenario, seen, matrix = avalanche_benchmark(tasks), [], []
    with mock.patch.object(features, "find_cut", counter.during("probe", features.find_cut)):
        for experience in scenario.train_stream:
            strategy.train(experience, eval_streams=[])
            meter.clear()
            evaluate(scenario.test_stream)
            matrix.append([meter.accuracies[task] for task in range(n_tasks)])
            seen.append(counter.taken())
    with torch.no_grad():
        x, _ = tasks.store.batch(torch.arange(len(tasks.store)))
        answers = net.eval().for_task(x, n_tasks - 1)
    return Outcome(listener.losses, listener.validation, dict(net.state_dict()), matrix, answers, seen, strategy)


def build_backbone(name: str, *typed: str) -> Callable[[int], nn.Module]:
    """Makes a backbone of `configs/backbone` at 8, or where it needs them more pixels."""

    def make(n_classes: int, size: int = 8) -> nn.Module:
        node = compose([f"backbone={name}", *typed]).backbone
        own = type(node)({key: value for key, value in node.items() if key not in ("head", "head_classes")})
        return build(own).build(in_channels=3, image_size=size, n_classes=n_classes)

    return make
