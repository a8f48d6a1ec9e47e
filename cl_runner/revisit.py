"""A trained network taken back from its run folder: evaluated again, loaded into Python, or written to a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from cl_runner.announcement import announce
from cl_runner.assembly import build_strategy, prepare_torch
from cl_runner.backbones.export import save_weights
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.benchmarks.stream import Task, TaskStream
from cl_runner.config.checks import settle
from cl_runner.errors import RequestError
from cl_runner.keeping import randomness, weights
from cl_runner.keeping.reading import last_of, read_state
from cl_runner.learning import Run
from cl_runner.modalities import modality_of
from cl_runner.recording.checkpoints import Checkpoint
from cl_runner.recording.recorder import Recorder
from cl_runner.recording.run_folder import RunFolder
from cl_runner.result import RunResult
from cl_runner.signals import Stop
from cl_runner.stage import assemble, prepare, quiet_libraries


def evaluate_again(
    config: DictConfig, folder: RunFolder, recorder: Recorder, experiment: str, checkpoint: Checkpoint
) -> RunResult:
    """Evaluates the network of a run as its last trained task left it, on every task, and compares.

    Args:
        config: the run's, settled.
        folder: where the result goes.
        recorder: is told everything.
        experiment: the run's.
        checkpoint: the run's last.
    """
    stage = prepare(config, recorder)
    with quiet_libraries():
        parts = assemble(config, stage.stream, stage.recipe, stage.workshop, recorder, None, stage.modality)
        announce(config, folder, recorder, experiment, stage.stream, stage.network, stage.device, stage.modality)
        run = Run.of(config, stage, parts, recorder, None, Stop())
        done, _ = run.keeper.take_up(checkpoint.base or checkpoint)
        if not done:
            raise RequestError(f"checkpoint={config.checkpoint}: this run has not trained a task yet", "resume it")
        tasks_seen = run.phases[done - 1][-1].current_experience + 1
        before = recorder.matrix[tasks_seen - 1].copy()
        run.evaluate(tasks_seen)
    now = recorder.matrix[tasks_seen - 1]
    known = [(old, new) for old, new in zip(_recorded(config.checkpoint, tasks_seen, before), now, strict=True)]
    largest = max((abs(old - new) for old, new in known if old == old and new == new), default=None)
    summary = recorder.run_finished(
        {"evaluated_run": str(config.checkpoint), "after_task": tasks_seen, "largest_difference": largest}, "evaluated"
    )
    return RunResult(folder.path, summary, network=stage.network)


def _recorded(run: str, tasks_seen: int, unknown: Any) -> Any:
    """The row of a run's accuracy matrix; NaN where it has none."""
    import numpy as np

    try:
        lines = (Path(run).expanduser() / "accuracy_matrix.csv").read_text(encoding="utf-8").splitlines()[1:]
    except OSError:
        return unknown
    cells = [line.split(",") for line in lines]
    rows = {int(after): [float(cell) if cell else np.nan for cell in row] for after, *row in cells}
    return rows.get(tasks_seen, unknown)


def load(run: str | Path, task: int | None = None) -> nn.Module:
    """The network of a run as its last trained task left it, on the CPU, in evaluation mode.

    Needs no data. With ``task`` (from 1, as in the tables), the answer of ``network(x)`` is that for this task:
    logits (B, n_classes), minus infinity for the classes of others. Without it the network takes the task of each
    sample, ``network(x, task_labels)`` with labels from 0, or infers it where the run had no task labels.

    Args:
        run: a run folder with a checkpoint, finished or not.
        task: answers for this task only.

    Raises:
        RequestError: there is no checkpoint, no such task, or pretrained weights are not what they were.
    """
    folder = Path(run).expanduser()
    checkpoint = last_of(folder, lambda text: None)
    try:
        config = settle(OmegaConf.load(folder / "config.yaml"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder}: its config.yaml cannot be read: {error}") from error
    outside = randomness.states(torch.Generator())
    try:
        network = _revived(config, folder, checkpoint.base or checkpoint)
    finally:
        randomness.restore(outside, torch.Generator())
    network.requires_grad_(False).eval()
    if task is None:
        return network
    if not 1 <= task <= network.n_tasks:
        tasks = network.n_tasks
        raise RequestError(f"task={task}: this run has {tasks} tasks", f"a number from 1 to {tasks}")
    return OneTask(network, task - 1)


class OneTask(nn.Module):
    """A network that answers for one task.

    Args:
        network: of a run.
        task: from 0.
    """

    def __init__(self, network: TaskNetwork, task: int) -> None:
        super().__init__()
        self.network, self.task = network, task
        network.activate(task)

    def forward(self, x: Tensor) -> Tensor:
        """Logits under the task."""
        answer: Any = getattr(self.network, "for_task", None)
        found: Tensor = self.network(x) if answer is None else answer(x, self.task)
        return found


def export_merged(run: str | Path, file: Path, task: int | None = None) -> Path:
    """Writes the weights of a run's network, deltas merged into them, under the names of the backbone's library.

    Args:
        run: a run folder with a checkpoint.
        file: ending in .safetensors.
        task: whose set is merged, from 1; needed where every task has its own.

    Raises:
        RequestError: see `load`; or several sets and no task.
    """
    found = load(run, task)
    network = found.network if isinstance(found, OneTask) else found
    assert isinstance(network, TaskNetwork)
    if task is None and (network.per_task or network.separate_heads):
        raise RequestError(
            f"{run}: every task of this run has weights of its own", f"say which: --task 1 to {network.n_tasks}"
        )
    return save_weights(network, file, None if task is None else task - 1)


def _revived(config: DictConfig, folder: Path, checkpoint: Checkpoint) -> TaskNetwork:
    modality = modality_of(config)
    prepare_torch(config)
    _, outline = modality.open()
    outline = _with_names(outline, folder)
    network = modality.network(outline, task_aware=outline.task_labels)
    if any(name.startswith(weights.EXTRA) for name in checkpoint.state["network"]):
        build_strategy(config, outline, network, modality)  # gives the network what the strategy answers with
    if outline.store is None and network.prompted:
        modality.meet(outline, network)
    known = weights.everything(network)
    try:
        state = read_state(checkpoint, known.__getitem__, torch.device("cpu"))
        weights.relive(network, state["phases"], state["epochs"])
        weights.write(weights.everything(network), state["network"])
    except (weights.OtherNetwork, LookupError) as problem:
        raise RequestError(
            f"{folder}: its checkpoint does not fit: {problem}; the pretrained weights, or the versions of torch and "
            "cl-run, are not those of the run",
            "put them back",
        ) from problem
    network.adapter.remember(state["adapter"])
    network.activate(state["active"])
    return network


def _with_names(outline: TaskStream, folder: Path) -> TaskStream:
    """An outline with the names of classes that the data gave the run."""
    try:
        names = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["class_names"]
    except (OSError, ValueError, KeyError):
        names = {}

    def named(task: Task) -> Task:
        return dataclasses.replace(task, class_names=tuple(names.get(task.name, task.class_names)))

    tasks, probes = tuple(map(named, outline.tasks)), tuple(map(named, outline.probes))
    return dataclasses.replace(outline, tasks=tasks, probes=probes)
