"""The method section: a stream, a network with its adapter, a strategy; train, evaluate and record every task."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from cl_runner import evaluation
from cl_runner.adapters.interchange import save_peft
from cl_runner.announcement import announce
from cl_runner.assembly import notes
from cl_runner.backbones.export import save_weights
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.benchmarks.avalanche_view import StoredSamples, avalanche_benchmark
from cl_runner.config.identity import CONFIGURATION, what_matters
from cl_runner.errors import RequestError
from cl_runner.keeping.keeper import Keeper
from cl_runner.keeping.parts import Interval, Parts
from cl_runner.keeping.sameness import fingerprint_of
from cl_runner.recording.checkpoints import Checkpoint, Checkpoints
from cl_runner.recording.recorder import Recorder
from cl_runner.recording.redact import redact
from cl_runner.recording.run_folder import RunFolder
from cl_runner.result import RunResult
from cl_runner.signals import Stop
from cl_runner.stage import Stage, assemble, phases_of, prepare, quiet_libraries
from cl_runner.training.account import layer_rows, parameter_row, trainable_parameters
from cl_runner.training.capture import step_for
from cl_runner.training.meter import Meter
from cl_runner.training.monitor import TrainingMonitor
from cl_runner.training.plugin import AdapterPlugin
from cl_runner.training.timing import NoTimer
from cl_runner.training.together import in_company
from cl_runner.training.unchanged import Unchanged
from cl_runner.watching import account_for, traced


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
    timer: NoTimer | None = None,
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
        timer: accounts for the time.
    """
    timer = timer or NoTimer()
    stage = prepare(config, recorder, timer)
    stream, network = stage.stream, stage.network
    with quiet_libraries():
        parts = assemble(config, stream, stage.recipe, stage.workshop, recorder, evaluator, stage.modality)
        recorder.silence(checkpoint is not None)  # what comes now it said when it began
        announce(config, folder, recorder, experiment, stream, network, stage.device, stage.modality)
        for note in (*stream.notes, *notes(stage.recipe, network)):
            recorder.warning(note)
        run = Run.of(config, stage, parts, recorder, checkpoints, stop or Stop())
        account_for(timer, run, recorder)
        timer.mark("building")
        with traced(config, folder, recorder, run.strategy):
            run.go_on(checkpoint)
    network.to(memory_format=torch.contiguous_format)  # as files of weights have them
    _export(config, network, recorder)
    monitor, guard = run.monitor, run.strategy.guard
    rate = monitor.images / monitor.training_seconds if monitor.training_seconds else None
    figures = {
        "wall_seconds": run.keeper.seconds,
        "train_images_per_second": rate,
        "peak_memory_bytes": _peak_memory(stage.device),
        "drift": network.adapter.drift(),
    }
    skipped = {"skipped_steps": guard.skipped, "skipped_samples": len(getattr(stream, "skipped", ()))}
    summary = recorder.run_finished(figures | {name: count for name, count in skipped.items() if count})
    return RunResult(folder.path, summary, _rows(recorder.matrix), _rows([recorder.initial])[0], network)


@dataclass
class Run:
    """A stream, a network and a strategy on their way through the tasks."""

    config: DictConfig
    stage: Stage
    recorder: Recorder
    monitor: TrainingMonitor
    meter: Meter
    strategy: Any
    scenario: Any
    phases: list[list[Any]]
    keeper: Keeper
    unchanged: Unchanged | None = None

    @classmethod
    def of(
        cls,
        config: DictConfig,
        stage: Stage,
        parts: tuple[TrainingMonitor, Meter, Any],
        recorder: Recorder,
        checkpoints: Checkpoints | None,
        stop: Stop,
    ) -> Run:
        """A run at its beginning, from what `prepare` and `assemble` gave."""
        monitor, meter, strategy = parts
        scenario = avalanche_benchmark(stage.stream)
        phases = phases_of(scenario, stage.recipe)
        plugin = next(item for item in strategy.plugins if isinstance(item, AdapterPlugin))
        facts = {CONFIGURATION: redact(what_matters(config)), "the data": fingerprint_of(stage.stream)}
        states = Parts(strategy, monitor, plugin, StoredSamples(scenario), recorder, phases, facts)
        interval = Interval(config.trainer.checkpoint_epochs, config.trainer.checkpoint_minutes)
        keeper = strategy.keeper = Keeper(states, checkpoints, interval, stop)
        strategy.guard.on_nan, strategy.guard.told = config.on_nan, monitor.step_skipped
        step = step_for(config.trainer.compile, stage.device, recorder.warning)
        strategy.step = in_company(step, recorder.warning)
        unchanged = Unchanged() if config.evaluate_unchanged == "carry" else None
        return cls(config, stage, recorder, monitor, meter, strategy, scenario, phases, keeper, unchanged)

    def go_on(self, checkpoint: Checkpoint | None) -> None:
        """Trains, evaluates and records every task that is still to come."""
        done, evaluated = 0, True
        if checkpoint is not None:
            done, evaluated = self.keeper.take_up(checkpoint)
        else:
            if self.config.evaluate != "last" and self.stage.recipe.evaluates_untrained:
                self.evaluate(0)
            self.keeper.run_begins()
        for number, phase in enumerate(self.phases, start=1):
            tasks_seen = phase[-1].current_experience + 1
            if number > done:
                with self.keeper.stop.awaited():
                    self.train(number, phase, tasks_seen)
            if number > done or (number == done and not evaluated):
                if self.config.evaluate != "last" or tasks_seen == len(self.stage.stream):
                    self.evaluate(tasks_seen)
                self.trace_ranks(tasks_seen)
                self.keeper.phase_evaluated(number)

    def train(self, number: int, phase: list[Any], tasks_seen: int) -> None:
        """Trains one phase and records what it stores."""
        network, strategy, stage = self.stage.network, self.strategy, self.stage
        strategy.train_epochs = stage.workshop.epochs[number - 1] if stage.recipe.descends else 0
        row = _train(strategy, phase, network, self.monitor, self.keeper)
        figures = {"drift": network.adapter.drift()} | network.adapter.figures()
        layers = [layer for experience in phase for layer in layer_rows(network, experience.current_experience)]
        self.recorder.task_finished(tasks_seen, row | figures, layers)
        self.keeper.phase_trained(number)
        strategy.timer.mark("tasks")

    def evaluate(self, tasks_seen: int) -> None:
        """Fills a row of the accuracy matrix."""
        evaluation.evaluate(
            self.strategy,
            self.scenario,
            self.meter,
            self.recorder,
            self.config.evaluate,
            tasks_seen=tasks_seen,
            stream=self.stage.stream,
            unchanged=self.unchanged,
        )

    def trace_ranks(self, tasks_seen: int) -> None:
        """Evaluates at lower ranks, where that is asked for."""
        evaluation.rank_curve(
            self.strategy,
            self.scenario,
            self.meter,
            self.recorder,
            self.stage.network,
            tasks_seen=tasks_seen,
            stream=self.stage.stream,
        )


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


def _rows(matrix: Any) -> list[list[float | None]]:
    return [[None if value != value else float(value) for value in row] for row in matrix]


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device where it is a GPU, else of the process (the kernel counts in KiB, on macOS in bytes)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
