"""The method section: a stream, a network with its adapter, a strategy; train, evaluate and record every task."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from cl_runner import evaluation
from cl_runner.adapters.interchange import check_savable, save_peft
from cl_runner.announcement import announce
from cl_runner.assembly import (
    build_strategy,
    choose_device,
    notes,
    prepare_torch,
)
from cl_runner.backbones.export import check_export, save_weights
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.benchmarks.avalanche_view import StoredSamples, avalanche_benchmark
from cl_runner.benchmarks.stream import TaskStream
from cl_runner.config.checks import build
from cl_runner.config.identity import CONFIGURATION, what_matters
from cl_runner.errors import RequestError
from cl_runner.keeping.keeper import Keeper
from cl_runner.keeping.parts import Interval, Parts
from cl_runner.keeping.sameness import fingerprint_of
from cl_runner.modalities import modality_of
from cl_runner.modalities.modality import Modality, data_root
from cl_runner.recording.checkpoints import Checkpoint, Checkpoints
from cl_runner.recording.recorder import Recorder
from cl_runner.recording.run_folder import RunFolder
from cl_runner.result import RunResult
from cl_runner.signals import Stop
from cl_runner.strategies.strategy import Strategy, Workshop
from cl_runner.training.account import layer_rows, parameter_row, trainable_parameters
from cl_runner.training.meter import Meter, NoMetrics
from cl_runner.training.monitor import Listener, TrainingMonitor
from cl_runner.training.plugin import AdapterPlugin

Progress = Callable[[int, int], None]


def learn(
    config: DictConfig,
    folder: RunFolder,
    recorder: Recorder,
    experiment: str,
    evaluator: Any = None,
    *,
    checkpoints: Checkpoints | None = None,
    checkpoint: Checkpoint | None = None,
    stop: Stop | None = None,
) -> RunResult:
    """Learns the whole stream.

    Args:
        config: a settled configuration.
        folder: the run folder.
        recorder: is told everything.
        experiment: names the run.
        evaluator: an Avalanche EvaluationPlugin to run along.
        checkpoints: where the run is kept; None: nowhere.
        checkpoint: what to go on from; None: from the beginning.
        stop: says when the run is to end.
    """
    modality = modality_of(config)
    stream, network, recipe, workshop, device = _prepare(
        config, modality, functools.partial(recorder.reading, what=modality.reading)
    )
    with _quiet_libraries():
        monitor, meter, strategy = assemble(config, stream, recipe, workshop, recorder, evaluator, modality)
    recorder.silence(checkpoint is not None)
    announce(config, folder, recorder, experiment, stream, network, device, modality)
    for note in (*stream.notes, *notes(recipe, network)):
        recorder.warning(note)
    scenario = avalanche_benchmark(stream)
    phases = _phases(scenario, recipe)
    keeper = _keeper(config, strategy, stream, scenario, phases, recorder, monitor, checkpoints, stop)
    evaluate = functools.partial(
        evaluation.evaluate, strategy, scenario, meter, recorder, config.evaluate, stream=stream
    )
    curve = functools.partial(evaluation.rank_curve, strategy, scenario, meter, recorder, network, stream=stream)
    with _quiet_libraries():
        done, evaluated = (0, True) if checkpoint is None else keeper.take_up(checkpoint)
        if checkpoint is None:
            if config.evaluate != "last" and recipe.evaluates_untrained:
                evaluate(tasks_seen=0)
            keeper.run_begins()
        for number, phase in enumerate(phases, start=1):
            tasks_seen = phase[-1].current_experience + 1
            if number > done:
                strategy.train_epochs = workshop.epochs[number - 1] if recipe.descends else 0
                with keeper.stop.awaited():
                    row = _train(strategy, phase, network, monitor, keeper)
                    figures = {"drift": network.adapter.drift()} | network.adapter.figures()
                    recorder.task_finished(tasks_seen, row | figures, _layers(network, phase))
                    keeper.phase_trained(number)
            if number > done or (number == done and not evaluated):
                if config.evaluate != "last" or tasks_seen == len(stream):
                    evaluate(tasks_seen=tasks_seen)
                curve(tasks_seen=tasks_seen)
                keeper.phase_evaluated(number)

    _export(config, network, recorder)
    rate = monitor.images / monitor.training_seconds if monitor.training_seconds else None
    skipped = {"skipped_steps": strategy.guard.skipped} if strategy.guard.skipped else {}
    summary = recorder.run_finished(
        {
            "wall_seconds": keeper.seconds,
            "train_images_per_second": rate,
            "peak_memory_bytes": _peak_memory(device),
            "drift": network.adapter.drift(),
        }
        | skipped
    )
    return RunResult(folder.path, summary, _rows(recorder.matrix), _rows([recorder.initial])[0], network)


def _keeper(
    config: DictConfig,
    strategy: Any,
    stream: TaskStream,
    scenario: Any,
    phases: list[list[Any]],
    recorder: Recorder,
    monitor: TrainingMonitor,
    checkpoints: Checkpoints | None,
    stop: Stop | None,
) -> Keeper:
    """What keeps the run, in the place of what keeps nothing."""
    plugin = next(item for item in strategy.plugins if isinstance(item, AdapterPlugin))
    facts = {CONFIGURATION: what_matters(config), "the data": fingerprint_of(stream)}
    parts = Parts(strategy, monitor, plugin, StoredSamples(scenario), recorder, phases, facts)
    interval = Interval(config.trainer.checkpoint_epochs, config.trainer.checkpoint_minutes)
    keeper = strategy.keeper = Keeper(parts, checkpoints, interval, stop or Stop())
    strategy.guard.told = recorder.step_skipped
    return keeper


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
    options = {"progress": progress, "training": recipe.reads_training, "on_bad_sample": config.on_bad_sample}
    options |= modality.given()
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
    workshop = dataclasses.replace(workshop, lane=modality.lane(stream))
    strategy = recipe.build(workshop, watchers, evaluator or NoMetrics())
    return monitor, meter, strategy


def _phases(scenario: Any, recipe: Strategy) -> list[list[Any]]:
    """What is trained together: one task after another, or the whole stream at once."""
    experiences = list(scenario.train_stream)
    return [experiences] if recipe.whole_stream else [[experience] for experience in experiences]


def _train(
    strategy: Any, phase: list[Any], network: TaskNetwork, monitor: TrainingMonitor, keeper: Keeper
) -> dict[str, Any]:
    """Trains one phase and returns its row of `parameters.csv`."""
    opened: dict[str, Any] = {}
    monitor.when_open = lambda: opened.update(trainable=trainable_parameters(network))
    keeper.task_begins()
    strategy.train(phase if len(phase) > 1 else phase[0], eval_streams=[])
    seconds = keeper.task_seconds
    stored = parameter_row(network, phase[-1].current_experience + 1)
    return stored | opened | {"epochs": monitor.epoch, "best_epoch": monitor.best_epoch, "seconds": seconds}


def _layers(network: TaskNetwork, phase: list[Any]) -> list[dict[str, Any]]:
    return [row for experience in phase for row in layer_rows(network, experience.current_experience)]


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
