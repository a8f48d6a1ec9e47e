"""The method section: a stream, a network with its adapter, a strategy; train, evaluate and record every task."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from cl_runner import evaluation
from cl_runner.adapters.interchange import check_savable, save_peft
from cl_runner.assembly import (
    build_strategy,
    choose_device,
    notes,
    prepare_torch,
)
from cl_runner.backbones.export import check_export, save_weights
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.benchmarks.avalanche_view import avalanche_benchmark
from cl_runner.benchmarks.stream import TaskStream
from cl_runner.config.checks import build
from cl_runner.errors import RequestError
from cl_runner.modalities import modality_of
from cl_runner.modalities.modality import Modality, data_root
from cl_runner.recording.environment import describe
from cl_runner.recording.recorder import Recorder
from cl_runner.recording.run_folder import RunFolder
from cl_runner.result import RunResult
from cl_runner.strategies.strategy import Strategy, Workshop
from cl_runner.training.account import layer_rows, parameter_row, trainable_parameters
from cl_runner.training.meter import Meter, NoMetrics
from cl_runner.training.monitor import Listener, TrainingMonitor
from cl_runner.training.plugin import AdapterPlugin

Progress = Callable[[int, int], None]


def learn(
    config: DictConfig, folder: RunFolder, recorder: Recorder, experiment: str, evaluator: Any = None
) -> RunResult:
    """Learns the whole stream.

    Args:
        config: a settled configuration.
        folder: the run folder.
        recorder: is told everything.
        experiment: names the run.
        evaluator: an Avalanche EvaluationPlugin to run along.
    """
    started = time.perf_counter()
    modality = modality_of(config)
    stream, network, recipe, workshop, device = _prepare(
        config, modality, functools.partial(recorder.reading, what=modality.reading)
    )
    with _quiet_libraries():
        monitor, meter, strategy = assemble(config, stream, recipe, workshop, recorder, evaluator, modality)
    _announce(config, folder, recorder, experiment, stream, network, device, modality)
    for note in (*stream.notes, *notes(recipe, network)):
        recorder.warning(note)

    scenario = avalanche_benchmark(stream)
    evaluate = functools.partial(
        evaluation.evaluate, strategy, scenario, meter, recorder, config.evaluate, stream=stream
    )
    with _quiet_libraries():
        if config.evaluate != "last" and recipe.evaluates_untrained:
            evaluate(tasks_seen=0)
        for number, phase in enumerate(_phases(scenario, recipe)):
            tasks_seen = phase[-1].current_experience + 1
            strategy.train_epochs = workshop.epochs[number] if recipe.descends else 0
            row = _train(strategy, phase, network, monitor)
            layers = _layers(network, phase)
            drift = network.adapter.drift()
            recorder.task_finished(tasks_seen, row | {"drift": drift} | network.adapter.figures(), layers)
            if config.evaluate != "last" or tasks_seen == len(stream):
                evaluate(tasks_seen=tasks_seen)
            evaluation.rank_curve(strategy, scenario, meter, recorder, network, tasks_seen=tasks_seen, stream=stream)

    _export(config, network, recorder)
    rate = monitor.images / monitor.training_seconds if monitor.training_seconds else None
    summary = recorder.run_finished(
        {
            "wall_seconds": time.perf_counter() - started,
            "train_images_per_second": rate,
            "peak_memory_bytes": _peak_memory(device),
            "drift": drift,
        }
    )
    return RunResult(folder.path, summary, _rows(recorder.matrix), _rows([recorder.initial])[0], network)


def _prepare(
    config: DictConfig, modality: Modality, progress: Progress
) -> tuple[TaskStream, TaskNetwork, Strategy, Workshop, torch.device]:
    """The parts of a run, checked against one another before data is read, on the device."""
    device = choose_device(config.trainer.device)
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
    options = {"progress": progress, "training": recipe.reads_training} | modality.given()
    takes = inspect.signature(benchmark.stream).parameters  # a user's own benchmark need not take them
    given = {name: value for name, value in options.items() if name in takes}
    stream: TaskStream = benchmark.stream(data_root(config), **given)
    assert stream.store is not None
    modality.meet(stream, network)
    stream.store.to(device, config.trainer.data_placement)
    memory_format = torch.channels_last if config.trainer.channels_last else torch.preserve_format
    network.to(device).to(memory_format=memory_format)
    return stream, network, recipe, workshop, device


def _export(config: DictConfig, network: TaskNetwork, recorder: Recorder) -> None:
    """Writes the trained weights, or the adapter; a full disk must not cost the run that made them."""
    try:
        if config.export is not None:
            recorder.log("exported", file=str(save_weights(network, config.export)))
        if config.export_adapter is not None:
            folder = Path(config.export_adapter).expanduser()
            save_peft(network.adapter, folder)
            if not network.reads_text:
                recorder.warning(f"{folder} holds the adapter alone, without the head; export=FILE has both, merged")
            recorder.log("exported", file=str(folder))
    except (RequestError, OSError) as error:
        recorder.warning(str(getattr(error, "text", error)).removeprefix("cl-run: ").strip())


def _announce(
    config: DictConfig,
    folder: RunFolder,
    recorder: Recorder,
    experiment: str,
    stream: TaskStream,
    network: TaskNetwork,
    device: torch.device,
    modality: Modality,
) -> None:
    """Records what is about to run, on what."""
    names = [task.name for task in stream.tasks]
    labels = _labels(config, stream, network, experiment)
    environment = describe(str(device), _seeds(config), list(stream.class_order), bool(config.trainer.deterministic))
    folder.write_environment(environment | {"class_names": {task.name: task.class_names for task in stream.tasks}})
    probes = [task.name for task in stream.probes]
    header = _header(config, labels, network, device, stream, modality)
    words = {"unit": modality.unit, "measure": modality.measure(stream)}
    recorder.run_started(header, names, labels, probes=probes, **words)


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
    )
    meter = modality.meter(stream, network)
    watchers = [monitor, meter, AdapterPlugin(network)]
    workshop = dataclasses.replace(workshop, lane=modality.lane(stream))
    strategy = recipe.build(workshop, watchers, evaluator or NoMetrics())
    return monitor, meter, strategy


def _phases(scenario: Any, recipe: Strategy) -> list[list[Any]]:
    """What is trained together: one task after another, or the whole stream at once."""
    experiences = list(scenario.train_stream)
    return [experiences] if recipe.whole_stream else [[experience] for experience in experiences]


def _train(strategy: Any, phase: list[Any], network: TaskNetwork, monitor: TrainingMonitor) -> dict[str, Any]:
    """Trains one phase and returns its row of `parameters.csv`."""
    opened: dict[str, Any] = {}
    monitor.when_open = lambda: opened.update(trainable=trainable_parameters(network))
    started = time.perf_counter()
    strategy.train(phase if len(phase) > 1 else phase[0], eval_streams=[])
    seconds = time.perf_counter() - started
    stored = parameter_row(network, phase[-1].current_experience + 1)
    return stored | opened | {"epochs": monitor.epoch, "best_epoch": monitor.best_epoch, "seconds": seconds}


def _layers(network: TaskNetwork, phase: list[Any]) -> list[dict[str, Any]]:
    return [row for experience in phase for row in layer_rows(network, experience.current_experience)]


def _seeds(config: DictConfig) -> dict[str, int | None]:
    benchmark = config.benchmark
    return {
        "seed": config.seed,
        "class_order_seed": benchmark.get("class_order_seed"),
        "split_seed": benchmark.get("split_seed"),
    }


def _labels(config: DictConfig, stream: TaskStream, network: TaskNetwork, experiment: str) -> dict[str, Any]:
    def named(group: str) -> str:
        return str(config[group]._target_).rpartition(".")[2].lower()

    return {
        "experiment": experiment,
        "benchmark": stream.name,
        "backbone": config.backbone.get("name") or named("backbone"),
        "adapter": network.adapter.label,
        "strategy": named("strategy"),
        "seed": config.seed,
    }


def _header(
    config: DictConfig,
    labels: dict[str, Any],
    network: TaskNetwork,
    device: torch.device,
    stream: TaskStream,
    modality: Modality,
) -> dict[str, str]:
    trainer = config.trainer
    about = modality.describe(stream, network)
    epochs = trainer.epochs if trainer.task_epochs is None else ",".join(map(str, trainer.task_epochs))
    length = f"{trainer.iterations} iterations" if trainer.iterations else f"{epochs} epochs"
    layers = network.adapter.adapted_layers()
    rank = config.adapter.get("rank")
    size = f"rank {rank} on" if rank is not None else "own weights for"
    adapter = labels["adapter"] + (f", {size} {len(layers)} layer{'s' * (len(layers) != 1)}" if layers else "")
    optimizer = str(config.optimizer._target_).rpartition(".")[2]
    return {
        "experiment": str(labels["experiment"]),
        "benchmark": f"{labels['benchmark']}: {about['benchmark']}",
        "backbone": f"{labels['backbone']}, {about['backbone']}",
        "adapter": adapter,
        "strategy": str(labels["strategy"]),
        "training": f"{length} a task, batch {trainer.batch_size}, {optimizer} lr {config.optimizer.get('lr')}",
        "device": f"{device}, {trainer.precision}, {torch.get_num_threads()} threads",
        "seed": str(config.seed),
    }


def _rows(matrix: Any) -> list[list[float | None]]:
    return [[None if value != value else float(value) for value in row] for row in matrix]


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device where it is a GPU, else of the process (the kernel counts in KiB, on macOS in bytes)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
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
