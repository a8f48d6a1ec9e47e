"""Rows of the accuracy matrix, and the other figures that come from evaluating the stream."""

from __future__ import annotations

import math
from typing import Any

from cl_runner.backbones.routing import TaskNetwork
from cl_runner.benchmarks.stream import TaskStream
from cl_runner.recording.recorder import Recorder
from cl_runner.training.meter import Meter
from cl_runner.training.unchanged import Unchanged


def evaluate(
    strategy: Any,
    scenario: Any,
    meter: Meter,
    recorder: Recorder,
    which: str,
    *,
    tasks_seen: int,
    stream: TaskStream,
    unchanged: Unchanged | None = None,
) -> None:
    """Fills row ``tasks_seen`` of the accuracy matrix, and what the probes give.

    Tasks that are ``unchanged`` since they were last evaluated are not measured again.
    """
    experiences, probes = _apart(scenario, stream)
    wanted = (experiences[:tasks_seen] if which == "seen" else experiences) + probes
    meter.clear()
    carried = set[int]() if unchanged is None else unchanged.recall(strategy, meter, wanted)
    left = [experience for experience in wanted if experience.current_experience not in carried]
    if left:
        strategy.eval(left)
    if unchanged is not None:
        unchanged.keep(meter)
    row = [meter.accuracies.get(experience.current_experience, math.nan) for experience in experiences]
    recorder.evaluated(tasks_seen, row, _figures(meter, experiences), carried=[task + 1 for task in carried])
    by_class = {task: found for task, found in meter.by_class.items() if task < len(stream)}
    recorder.classes_evaluated(tasks_seen, by_class, _class_names(stream))
    if probes:
        recorder.probed(tasks_seen, {task.name: meter.accuracies[task.index] for task in stream.probes})
    if meter.recognised:
        shares = [meter.recognised.get(experience.current_experience, math.nan) for experience in experiences]
        recorder.tasks_inferred(tasks_seen, shares)


def _apart(scenario: Any, stream: TaskStream) -> tuple[list[Any], list[Any]]:
    """The test experiences of the tasks, and those of the probes."""
    experiences = list(scenario.test_stream)
    return experiences[: len(stream)], experiences[len(stream) :]


def rank_curve(
    strategy: Any,
    scenario: Any,
    meter: Meter,
    recorder: Recorder,
    network: TaskNetwork,
    *,
    tasks_seen: int,
    stream: TaskStream,
) -> None:
    """Evaluates the trained network with fewer components, at those of the ranks asked for that still exist."""
    experiences, _ = _apart(scenario, stream)
    adapter = network.adapter
    if not adapter.eval_ranks or (tasks_seen < len(stream) and adapter.eval_ranks_at != "every_task"):
        return
    kept = adapter.kept_rank()
    for rank in adapter.eval_ranks:
        if kept is not None and rank > kept:
            continue
        adapter.truncate(rank)
        network.forget()
        meter.clear()
        strategy.eval(experiences)
        accuracies = [meter.accuracies[item.current_experience] for item in experiences]
        losses = [(item or {}).get("loss") for item in _figures(meter, experiences)]
        recorder.evaluated_at_rank(
            rank, accuracies, after_task=tasks_seen, losses=losses if any(item is not None for item in losses) else None
        )
    adapter.truncate(None)
    network.forget()


def _figures(meter: Meter, experiences: list[Any]) -> list[dict[str, Any] | None]:
    return [meter.figures.get(experience.current_experience) for experience in experiences]


def _class_names(stream: TaskStream) -> dict[int, str]:
    return {label: name for task in stream.tasks for label, name in zip(task.classes, task.class_names, strict=True)}
