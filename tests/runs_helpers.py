"""Builders that the tests of streams, the training lane, strategies and whole runs share."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cl_runner.benchmarks.classes import ClassSplit
from cl_runner.benchmarks.sources.source import Facts, ImageData, Source
from cl_runner.benchmarks.store import ImageStore
from cl_runner.benchmarks.stream import TaskStream
from cl_runner.config.checks import settle
from cl_runner.config.compose import compose
from cl_runner.runner import RunResult, run

SMALL = (
    "quiet=true",
    "report=false",
    "trainer.threads=1",
    "trainer.device=cpu",
    "trainer.epochs=1",
    "trainer.batch_size=16",
    "backbone.width=8",
    "benchmark.n_tasks=2",
    "benchmark.per_class=20",
    "benchmark.validation_fraction=0",
)
NOWHERE = Path("/nonexistent")  # the digits and the fake source need no folder


def asked(*overrides: str) -> list[str]:
    """The small settings with some of them replaced."""
    keys = {item.split("=")[0].lstrip("+~") for item in overrides}
    if keys & {"trainer.iterations", "trainer.task_epochs"}:
        keys.add("trainer.epochs")  # one of the three
    return [item for item in SMALL if item.split("=")[0] not in keys] + list(overrides)


def small_run(folder: Path, *overrides: str, plain: bool = False) -> RunResult:
    """Runs in this process and returns the result.

    Args:
        folder: where run folders go.
        overrides: what is typed besides the small settings.
        plain: leave the small settings out.
    """
    typed = [*(overrides if plain else asked(*overrides)), f"output_root={folder}"]
    return run(compose(typed), experiment="test", overrides=typed)


def settled(*overrides: str) -> Any:
    """A settled configuration with the small settings."""
    return settle(compose(asked(*overrides)))


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def as_array(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """A matrix of a RunResult, NaN where nothing was evaluated."""
    return np.array([[np.nan if value is None else value for value in row] for row in rows])


def watch_assembly(monkeypatch: Any, then: Callable[[Any], None] = lambda strategy: None) -> list[Any]:
    """Collects the Avalanche strategy of every run from now on, after ``then`` had a look at it."""
    from cl_runner import learning

    assemble, made = learning.assemble, []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        parts = assemble(*args, **kwargs)
        then(parts[2])
        made.append(parts[2])
        return parts

    monkeypatch.setattr(learning, "assemble", wrapped)
    return made


class Drawn(Source):
    """A dataset whose image i of a class says so in its pixels: channel 0 is the class, channel 1 is i.

    Training images have 0 in channel 2, test images 255. Labels are interleaved: 0, 1, .., 0, 1, ..
    """

    name, size, licence, origin = "drawn", "none", "none", "here"

    def __init__(self, n_classes: int, n_train: int = 6, n_test: int = 2, height: int = 8) -> None:
        self.n_classes, self.per_class, self.height = n_classes, (n_train, n_test), height

    def facts(self) -> Facts:
        n_train, n_test = (count * self.n_classes for count in self.per_class)
        shape = (3, self.height, self.height)
        return Facts(self.n_classes, shape, n_train, n_test, (0.3, 0.4, 0.5), (0.25, 0.5, 0.2))

    def find(self) -> str:
        return "drawn"

    def verify(self, progress: Any = None) -> str:
        return "drawn"

    def load(self, progress: Any = None) -> ImageData:
        parts = []
        for is_test, count in enumerate(self.per_class):
            labels = np.tile(np.arange(self.n_classes), count)
            images = np.zeros((len(labels), self.height, self.height, 3), dtype=np.uint8)
            images[..., 0] = labels[:, None, None]
            images[..., 1] = (np.arange(len(labels)) // self.n_classes)[:, None, None]
            images[..., 2] = 255 * is_test
            parts += [images, labels]
        return ImageData(*parts, tuple(f"bird {label}" for label in range(self.n_classes)))


class DrawnSplit(ClassSplit):
    """Tasks over the drawn dataset."""

    name = "drawn"

    def __init__(self, *, n_classes: int = 10, n_train: int = 6, n_test: int = 2, **options: Any) -> None:
        super().__init__(**{"validation_fraction": 0.0, **options})
        self.drawn = Drawn(n_classes, n_train, n_test)

    def source(self, root: Path) -> Source:
        return self.drawn


def drawn_stream(**options: Any) -> TaskStream:
    """A stream over the drawn dataset."""
    return DrawnSplit(**options).stream(NOWHERE)


def noise_store(n: int = 40, channels: int = 3, height: int = 8, width: int = 8, n_tasks: int = 1) -> ImageStore:
    """A store of random images; sample i has label i mod 4, and the tasks are consecutive blocks."""
    rng = np.random.default_rng(0)
    return ImageStore(
        images=rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8),
        labels=np.arange(n) % 4,
        tasks=np.arange(n) * n_tasks // n,
        mean=(0.4914, 0.4822, 0.4465)[:channels],
        std=(0.247, 0.2435, 0.2616)[:channels],
    )


def generator(seed: int = 0) -> torch.Generator:
    """A seeded host generator."""
    return torch.Generator().manual_seed(seed)


class Watch:
    """An Avalanche plugin made of functions, each named after the event at which it is called with the strategy."""

    def __init__(self, **events: Callable[[Any], None]) -> None:
        for event, function in events.items():
            setattr(self, event, lambda strategy, *, _function=function, **_: _function(strategy))


def network_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every weight and buffer."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    """The `epoch` events of a run."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "epoch"]


def learn_directly(folder: Path, *overrides: str, evaluator: Any = None) -> tuple[RunResult, Any]:
    """Calls `learn` itself, with Avalanche's metrics beside ours; returns the result and the recorder."""
    from cl_runner.learning import learn
    from cl_runner.recording import Console, EventLog, Recorder, RunFolder

    config = settled(*overrides)
    place = RunFolder.create(folder, config, [])
    recorder = Recorder(place, EventLog(folder / "events.jsonl"), Console(quiet=True))
    return learn(config, place, recorder, "test", evaluator), recorder
