"""What W&B is told about a run: a pure function of the records of ``events.jsonl``. Knows nothing of the wandb package.

Live tracking and ``cl-report sync`` both go through :class:`Translation`, so that they say the same. Metrics are
named ``section/metric``, sections are drawn against an axis:

====================================================  ==========================================================
train/*, validation/*                                 train/step, optimiser steps over the whole stream
accuracy/*, forgetting/*, transfer/*, inference/*,    task, the number of tasks learned so far (0: none yet)
probe/*, loss/*, class_accuracy/*, parameters/*, ...
rank_curve/*, rank_curve_after_I/*                    rank_curve/rank, what the network was truncated to
====================================================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from cl_runner.metrics import summarize
from cl_runner.recording.wandb_calls import Call, Define, End, Log, Summarise, Table

STEP, TASK, RANK = "train/step", "task", "rank_curve/rank"
AXES = {
    STEP: ("train", "validation"),
    TASK: (
        *("accuracy", "probe", "forgetting", "transfer", "inference", "class_accuracy"),
        *("loss", "perplexity", "token_accuracy", "tokens"),
        *("parameters", "task", "rank", "delta_norm", "layer_parameters"),
    ),
    RANK: ("rank_curve",),
}
COUNTS = ("base", "trainable", "adapter", "normalisation", "head", "stored", "inference", "growth")
_CURVES = {  # key of metrics.summarize on the tasks learned so far: name of the curve
    "acc": "accuracy/mean_seen",
    "learning_accuracy": "accuracy/learning",
    "forgetting": "forgetting/mean",
    "bwt": "transfer/backward",
    "fwt": "transfer/forward",
}
_GATHERED = {  # kind of record: the field that is the same in all records of one row
    "layer": "task",
    "evaluated": "after_task",
    "classes_evaluated": "after_task",
    "probed": "after_task",
    "task_inferred": "after_task",
    "evaluated_at_rank": "rank",
}
_OF_TEXTS = ("loss", "perplexity", "token_accuracy", "tokens")  # what an evaluation of texts gives besides the score
_EXIT_CODES = {"done": 0, "failed": 1, "interrupted": 130}
_NO_METRICS = ("time", "event")


class Translation:
    """Turns records into calls, in order.

    Records that belong to one row (the accuracies of one evaluation, the layers of one task) are gathered and become
    one call when another kind follows.

    Args:
        origin: Unix seconds; a row's step is the milliseconds since then, so that a run which is resumed, or sent a
            second time, goes on where it was and W&B leaves out what it has.
    """

    def __init__(self, origin: float) -> None:
        self._origin = origin
        self._step = -1
        self._train_steps = self._train_epochs = self._batches = 0
        self._tasks: list[str] = []
        self._rows: dict[int, dict[int, float]] = {}
        self._losses: dict[tuple[int, int], float] = {}
        self._unit = "images"
        self._probes: list[str] = []
        self._probed: dict[tuple[int, str], float] = {}
        self._layers: dict[tuple[int, str], dict[str, Any]] = {}
        self._warnings: list[str] = []
        self._gathered: dict[str, float] = {}
        self._gathering: tuple[Any, ...] = ()
        self._time = origin
        self._exit_code: int | None = None
        self._unknown: set[str] = set()

    def opening(self) -> list[Define]:
        """The calls before any record."""
        return [Define(section, axis) for axis, sections in AXES.items() for section in sections]

    def feed(self, record: Mapping[str, Any]) -> list[Call]:
        """The calls that a record completes."""
        event = str(record.get("event"))
        group = (event, record.get(_GATHERED.get(event, "time")), record.get("after_task"))
        calls: list[Call] = [] if group == self._gathering else list(self._flush())
        self._gathering = group
        self._time = max(self._time, float(record.get("time") or 0.0))
        handler: Callable[[Mapping[str, Any]], Iterable[Call]] = getattr(self, f"_on_{event}", self._on_anything)
        return [*calls, *handler(record)]

    def closing(self) -> list[Call]:
        """The calls after the last record: what was gathered, tables, and how the run ended."""
        calls: list[Call] = list(self._flush())
        if self._warnings:
            calls.append(Summarise({"warnings": "\n".join(self._warnings)}))
        cells = [(after, task, value) for after, row in sorted(self._rows.items()) for task, value in row.items()]
        if cells:
            names = tuple((after, self._name(task), value) for after, task, value in cells)
            columns = ("after_task", "task", "accuracy")
            calls.append(Table(self._next_step(), "accuracy_matrix", columns, names, heat=columns))
        if self._losses:
            columns = ("after_task", "task", "loss")
            named = tuple((after, self._name(task), value) for (after, task), value in sorted(self._losses.items()))
            calls.append(Table(self._next_step(), "losses", columns, named, heat=columns))
        if self._probed:
            columns = ("after_task", "domain", "accuracy")
            found = tuple((after, domain, value) for (after, domain), value in sorted(self._probed.items()))
            calls.append(Table(self._next_step(), "probes", columns, found, heat=columns))
        if self._layers:
            layers = list(self._layers.values())
            keys = tuple(dict.fromkeys(key for layer in layers for key in layer))
            rows = tuple(tuple(_cell(layer.get(key)) for key in keys) for layer in layers)
            ranked = any(layer.get("rank") is not None for layer in layers)
            heat = ("name", "task", "rank") if ranked else None
            calls.append(Table(self._next_step(), "layers", keys, rows, heat=heat))
        if self._exit_code is None:  # the log just stops: the run was killed, or goes on
            calls.append(Summarise({"status": "unfinished"}))
        return [*calls, End(1 if self._exit_code is None else self._exit_code)]

    # ------------------------------------------------------------------------------------------- one kind of record

    def _on_run_started(self, record: Mapping[str, Any]) -> Iterator[Call]:
        self._tasks = [str(name) for name in record.get("tasks") or ()]
        self._probes = [str(name) for name in record.get("probes") or ()]
        self._unit = str(record.get("unit") or "images")
        self._exit_code = None  # gone on with, whatever ended it before
        yield Summarise({"status": "running"})

    def _on_task_started(self, record: Mapping[str, Any]) -> Iterator[Call]:
        self._batches = int(record.get("batches") or 0)
        planned = {f"task/planned_{name}": record.get(name) for name in ("epochs", "batches")}
        yield self._log({TASK: record.get("task"), **planned, **_rest("task", record, ("task", "epochs", "batches"))})

    def _on_epoch(self, record: Mapping[str, Any]) -> Iterator[Call]:
        self._train_epochs += 1
        self._train_steps += self._batches or 1
        renamed = {"train_loss": "train/loss", "validation_loss": "validation/loss", "epoch": "train/epoch_of_task"}
        renamed |= {"validation_accuracy": "validation/accuracy", "epochs": "train/planned_epochs"}
        values = {name: record.get(key) for key, name in renamed.items()}
        values |= _rest("train", record, tuple(renamed))
        seconds, images = record.get("seconds"), record.get("images")
        values |= {f"train/{self._unit}_per_second": images / seconds if seconds and images else None}
        yield self._log({STEP: self._train_steps, "train/epoch": self._train_epochs, **values})

    def _on_task_finished(self, record: Mapping[str, Any]) -> Iterator[Call]:
        counts = {f"parameters/{name}": record.get(name) for name in COUNTS}
        yield self._log({TASK: record.get("task"), **counts, **_rest("task", record, ("task", *COUNTS))})

    def _on_layer(self, record: Mapping[str, Any]) -> Iterator[Call]:
        task, name = int(record.get("task") or 0), str(record.get("name"))
        self._layers[task, name] = {key: value for key, value in record.items() if key not in _NO_METRICS}
        shown = {"rank": "rank", "delta_norm": "delta_norm", "parameters": "layer_parameters"}
        self._gather({TASK: task, **{f"{section}/{name}": record.get(key) for key, section in shown.items()}})
        yield from ()

    def _on_evaluated(self, record: Mapping[str, Any]) -> Iterator[Call]:
        after, task, accuracy = int(record["after_task"]), int(record["task"]), record.get("accuracy")
        if accuracy is not None:
            self._rows.setdefault(after, {})[task] = float(accuracy)
            self._gather({TASK: after, f"accuracy/task_{task}": accuracy})
        figures = {name: record[name] for name in _OF_TEXTS if record.get(name) is not None}
        if "loss" in figures:
            self._losses[after, task] = float(figures["loss"])
        if figures:
            self._gather({TASK: after, **{f"{name}/task_{task}": value for name, value in figures.items()}})
        yield from ()

    def _on_probed(self, record: Mapping[str, Any]) -> Iterator[Call]:
        after, domain, accuracy = int(record["after_task"]), str(record["domain"]), record.get("accuracy")
        if accuracy is not None:
            self._probed[after, domain] = float(accuracy)
            self._gather({TASK: after, f"probe/{domain}": accuracy})
        yield from ()

    def _on_classes_evaluated(self, record: Mapping[str, Any]) -> Iterator[Call]:
        pairs = zip(record.get("class_ids") or (), record.get("accuracies") or (), strict=False)
        self._gather({TASK: record.get("after_task"), **{f"class_accuracy/{label}": value for label, value in pairs}})
        yield from ()

    def _on_task_inferred(self, record: Mapping[str, Any]) -> Iterator[Call]:
        self._gather({TASK: record["after_task"], f"inference/task_{record['task']}": record.get("accuracy")})
        yield from ()

    def _on_evaluated_at_rank(self, record: Mapping[str, Any]) -> Iterator[Call]:
        section, task = self._rank_section(record.get("after_task")), record["task"]
        if section not in self._unknown and section != "rank_curve":
            self._unknown.add(section)
            yield Define(section, RANK)
        values = {f"{section}/task_{task}": record.get("accuracy"), f"{section}/loss_task_{task}": record.get("loss")}
        self._gather({RANK: record["rank"], **values})

    def _rank_section(self, after: int | None) -> str:
        """A section a stage, for one rank has one value at each; that after the last task has the plain name."""
        return "rank_curve" if after is None or after == len(self._tasks) else f"rank_curve_after_{after}"

    def _on_warning(self, record: Mapping[str, Any]) -> Iterator[Call]:
        self._warnings.append(str(record.get("text")))
        yield from ()

    def _on_error(self, record: Mapping[str, Any]) -> Iterator[Call]:
        yield Summarise({key: record[key] for key in ("error", "status") if record.get(key) is not None})

    def _on_run_ended(self, record: Mapping[str, Any]) -> Iterator[Call]:
        self._exit_code = _EXIT_CODES.get(str(record.get("status")), 1)
        yield Summarise({key: value for key, value in record.items() if key not in _NO_METRICS and value is not None})

    def _on_anything(self, record: Mapping[str, Any]) -> Iterator[Call]:
        """A kind that is not known here: every number of it, under its own section."""
        event = str(record.get("event"))
        axis = next((record[key] for key in ("after_task", "task") if record.get(key) is not None), None)
        if event not in self._unknown and axis is not None:
            self._unknown.add(event)
            yield Define(event, TASK)
        values = _rest(event, record, ())
        if values:
            yield self._log(values if axis is None else {TASK: axis, **values})

    # -------------------------------------------------------------------------------------------------------- helpers

    def _gather(self, values: Mapping[str, Any]) -> None:
        self._gathered.update({key: value for key, value in values.items() if value is not None})

    def _flush(self) -> Iterator[Call]:
        values, self._gathered = self._gathered, {}
        if not values:
            return
        if self._gathering[0] == "evaluated":
            values |= self._curves(int(self._gathering[1])) | self._mean_loss(int(self._gathering[1]))
        if self._gathering[0] == "probed":
            accuracies = [value for key, value in values.items() if key != TASK]
            if len(accuracies) == len(self._probes):  # a mean over others would be another figure
                values["probe/mean"] = float(np.mean(accuracies))
        if self._gathering[0] == "evaluated_at_rank":
            section = self._rank_section(self._gathering[2])
            for name, mean in (("task_", "mean"), ("loss_task_", "mean_loss")):
                cells = [value for key, value in values.items() if key.startswith(f"{section}/{name}")]
                values |= {f"{section}/{mean}": float(np.mean(cells))} if cells else {}
        yield self._log(values)

    def _curves(self, after: int) -> dict[str, float]:
        """What the matrix says about the tasks learned so far; nothing where an entry that is needed is missing."""
        if after < 1:
            return {}
        cells = self._rows
        row = cells[after]
        values = {
            f"forgetting/task_{task}": max(cells[i][task] for i in range(task, after)) - row[task]
            for task in range(1, after)
            if task in row and all(task in cells.get(i, {}) for i in range(task, after))
        }
        matrix = [[cells.get(i, {}).get(j, np.nan) for j in range(1, after + 1)] for i in range(1, after + 1)]
        initial = [cells.get(0, {}).get(j, np.nan) for j in range(1, after + 1)]
        found = summarize(matrix, initial)
        return values | {name: value for key, name in _CURVES.items() if (value := found[key]) is not None}

    def _mean_loss(self, after: int) -> dict[str, float]:
        """The mean loss on the tasks learned so far, where it is known of all of them."""
        losses = [self._losses.get((after, task)) for task in range(1, after + 1)]
        known = [value for value in losses if value is not None]
        return {"loss/mean_seen": float(np.mean(known))} if known and len(known) == after else {}

    def _log(self, values: Mapping[str, Any]) -> Log:
        kept = {key: value for key, value in values.items() if value is not None}
        return Log(self._next_step(), {**kept, "run/seconds": self._time - self._origin})

    def _next_step(self) -> int:
        self._step = max(self._step + 1, int(1000 * (self._time - self._origin)))
        return self._step

    def _name(self, task: int) -> str:
        return f"{task} {self._tasks[task - 1]}" if 0 < task <= len(self._tasks) else str(task)


def _rest(section: str, record: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, float]:
    """Every number of a record that has no name yet, lists and mappings taken apart."""
    return dict(_numbers(section, {key: value for key, value in record.items() if key not in (*_NO_METRICS, *known)}))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(f"{name}/{key}", item)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _numbers(f"{name}/{place}", item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _cell(value: Any) -> Any:
    return "x".join(map(str, value)) if isinstance(value, list) else value
