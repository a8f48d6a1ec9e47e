"""The parts of a run, made and checked against one another, ready to begin."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from cl_runner.adapters.interchange import check_savable
from cl_runner.assembly import build_strategy, choose_device, prepare_torch
from cl_runner.backbones.export import check_export
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.benchmarks.stream import TaskStream
from cl_runner.config.checks import build
from cl_runner.errors import RequestError
from cl_runner.modalities import modality_of
from cl_runner.modalities.modality import Modality, data_root
from cl_runner.recording.recorder import Recorder
from cl_runner.strategies.strategy import Strategy, Workshop
from cl_runner.training.meter import Meter, NoMetrics
from cl_runner.training.monitor import Listener, TrainingMonitor
from cl_runner.training.plugin import AdapterPlugin
from cl_runner.training.timing import NoTimer


@dataclass(frozen=True)
class Stage:
    """What a run is made of, before its strategy.

    Attributes:
        modality: what its samples are.
        stream: with its data, on the device.
        network: with its adapter, on the device.
        recipe: of the strategy.
        workshop: what the strategy is built from.
        device: where it computes.
    """

    modality: Modality
    stream: TaskStream
    network: TaskNetwork
    recipe: Strategy
    workshop: Workshop
    device: torch.device


def prepare(config: DictConfig, recorder: Recorder, timer: NoTimer | None = None) -> Stage:
    """The parts of a run, checked against one another before data is read, on the device."""
    timer = timer or NoTimer()
    modality = modality_of(config)
    progress = functools.partial(recorder.reading, what=modality.reading)
    device = choose_device(config.trainer.device)
    timer.on(device)
    prepare_torch(config)
    benchmark, outline = modality.open()
    network = modality.network(outline, task_aware=outline.task_labels)
    recipe, workshop = build_strategy(config, outline, network, modality)
    if config.export is not None:
        check_export(config.export, network)
        if not recipe.exports:
            raise RequestError(
                f"export={config.export}: strategy={type(recipe).__name__.lower()} answers with more than weights",
                "drop export, or choose another strategy",
            )
    if config.export_adapter is not None:
        check_savable(network.adapter, config.export_adapter)
    options = {"progress": progress, "training": recipe.reads_training, "on_bad_sample": config.on_bad_sample}
    options |= modality.given()
    takes = inspect.signature(benchmark.stream).parameters  # a user's own benchmark need not take them
    given = {name: value for name, value in options.items() if name in takes}
    timer.mark("building")
    stream: TaskStream = benchmark.stream(data_root(config), **given)
    timer.mark("reading data")
    assert stream.store is not None
    modality.meet(stream, network)
    stream.store.to(device, config.trainer.data_placement)
    memory_format = torch.channels_last if workshop.channels_last else torch.preserve_format
    network.to(device).to(memory_format=memory_format)
    workshop = dataclasses.replace(workshop, eval_batch_size=modality.eval_batch_size(stream, network))  # known by now
    return Stage(modality, stream, network, recipe, workshop, device)


def assemble(
    config: DictConfig,
    stream: TaskStream,
    recipe: Strategy,
    workshop: Workshop,
    listener: Listener,
    evaluator: Any = None,
    modality: Modality | None = None,
) -> tuple[TrainingMonitor, Meter, Any]:
    """The Avalanche strategy with the lane under it and the watchers beside it."""
    assert stream.store is not None
    network = workshop.network
    watched = config.trainer.patience is not None or str(config.scheduler._target_).endswith(".Plateau")
    empty = [task.name for task in stream.tasks if task.validation is None or not len(task.validation)]
    if watched and empty:
        raise RequestError(
            f"benchmark.validation_fraction={config.benchmark.get('validation_fraction')} leaves nothing to validate "
            f"{empty[0]} on, which trainer.patience or scheduler=plateau watches",
            "use more training data (benchmark.per_class, shots or n_train), or neither of the two",
        )
    modality = modality or modality_of(config)
    monitor = TrainingMonitor(
        listener=listener,
        schedule=build(config.scheduler),
        validation=[task.validation if recipe.validates else None for task in stream.tasks],
        names=["all tasks" if recipe.whole_stream else task.name for task in stream.tasks],
        patience=config.trainer.patience,
        restore_best=config.trainer.restore_best and not network.adapter.keeps_last,
        totals=modality.totals,
        amount=modality.amount,
        revisits=recipe.revisits,
        log_every=config.trainer.log_every,
    )
    meter = modality.meter(stream, network)
    watchers = [monitor, meter, AdapterPlugin(network)]
    lane = modality.lane(stream)
    lane.channels_last = workshop.channels_last
    workshop = dataclasses.replace(workshop, lane=lane)
    strategy = recipe.build(workshop, watchers, evaluator or NoMetrics())
    return monitor, meter, strategy


def phases_of(scenario: Any, recipe: Strategy) -> list[list[Any]]:
    """What is trained together: one task after another, or the whole stream at once."""
    experiences = list(scenario.train_stream)
    return [experiences] if recipe.whole_stream else [[experience] for experience in experiences]


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps Avalanche's deprecation notes, which a user can do nothing about, off the screen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="avalanche")
        warnings.filterwarnings("ignore", message=".*deprecated.*", category=DeprecationWarning)
        shown = warnings.showwarning

        def show(message: Any, category: type[Warning], filename: str, *rest: Any) -> None:
            if not (issubclass(category, DeprecationWarning) and "avalanche" in Path(filename).parts):
                shown(message, category, filename, *rest)

        warnings.showwarning = show  # type: ignore[assignment]  # Avalanche puts a filter of its own before ours at every such note
        logging.getLogger("avalanche").setLevel(logging.ERROR)
        yield
