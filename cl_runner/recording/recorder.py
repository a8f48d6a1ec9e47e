"""The one thing the runner talks to about a run: it passes every value on to files, trackers and the terminal."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cl_runner.errors import RequestError
from cl_runner.metrics import summarize
from cl_runner.recording.console import Console
from cl_runner.recording.events import EventLog, Tracker, Trackers
from cl_runner.recording.losses import Figures, Losses
from cl_runner.recording.probes import Probes
from cl_runner.recording.run_folder import RunFolder

_FROM_PARAMETERS = {  # key of the summary: column of the last row of parameters.csv
    "parameter_growth": "growth",
    "base_parameters": "base",
    "trainable_parameters": "trainable",
    "stored_parameters": "stored",
    "inference_parameters": "inference",
    "adapter_parameters": "adapter",
}


class Recorder:
    """Records a run: told, never asks. Tasks count from 1, "after task 0" is before any training.

    Every call is an event in ``events.jsonl``; the tables are rewritten whenever they grow, so that a run
    that is killed leaves all it had measured.

    Attributes:
        matrix: T x T accuracies in [0, 1], row i - 1 after task i; NaN where not evaluated.
        initial: T accuracies before any training; NaN where not evaluated.

    Args:
        folder: the run folder.
        events: its event log.
        console: the terminal view.
        trackers: called with every event; one that raises is dropped with a warning.
        report: draws the report into the folder once the summary is there; where it raises, there is a warning.
    """

    def __init__(
        self,
        folder: RunFolder,
        events: EventLog,
        console: Console,
        *,
        trackers: Sequence[Tracker] = (),
        report: Callable[[Path], None] | None = None,
    ) -> None:
        self.folder = folder
        self.matrix = np.empty((0, 0))
        self.initial = np.empty(0)
        self._events = events
        self._console = console
        self._trackers = Trackers(trackers, console.warning)
        self._report = report
        self._tasks: list[str] = []
        self._probes = Probes()
        self._losses = Losses()
        self._summary: dict[str, Any] = {}
        self._parameters: list[dict[str, Any]] = []
        self._layers: list[dict[str, Any]] = []
        self._ranks: list[dict[str, Any]] = []
        self._classes: list[dict[str, Any]] = []

    def run_started(
        self,
        header: Mapping[str, str],
        tasks: Sequence[str],
        summary_fields: Mapping[str, Any] | None = None,
        probes: Sequence[str] = (),
        unit: str = "images",
        measure: str = "accuracy",
    ) -> None:
        """Starts the run.

        Args:
            header: what was composed, for the terminal.
            tasks: the names of the T tasks in order.
            summary_fields: keys of ``summary.json`` known already (experiment, seed, ...), which a run that fails
                later keeps.
            probes: the names of the domains that are evaluated all along and never trained.
            unit: what a batch is made of, in the plural.
            measure: what the accuracies are called; of texts "token accuracy", or "score" where tasks have their own.
        """
        self._tasks = list(tasks)
        self._summary = dict(summary_fields or {})
        self.matrix = np.full((len(tasks), len(tasks)), np.nan)
        self.initial = np.full(len(tasks), np.nan)
        self._probes = Probes(probes, len(tasks))
        self._losses = Losses(tasks)
        self._console.unit, self._console.measure = unit, measure
        announced: dict[str, Any] = {"probes": list(probes)} if probes else {}
        announced |= {} if unit == "images" else {"unit": unit, "measure": measure}
        self.log("run_started", tasks=self._tasks, header=dict(header), labels=self._summary, **announced)
        self._console.header(header, self._tasks)

    @property
    def started(self) -> bool:
        """Whether the run has begun; before that, whatever goes wrong is a refusal."""
        return bool(self._tasks)

    def reading(self, done: int, total: int, what: str = "decoding images") -> None:
        """Shows how far what is read has come, ``done`` of ``total``; nothing is recorded."""
        self._console.reading(done, total, what)

    def task_started(self, index: int, name: str, epochs: int, batches: int) -> None:
        """Starts task ``index`` (from 1), planned as ``epochs`` of ``batches`` training steps each."""
        self.log("task_started", task=index, name=name, epochs=epochs, batches=batches)
        self._console.task_started(index, len(self._tasks), name, epochs, batches)

    def batch(self, n_images: int) -> None:
        """Counts one training step; costs well under a microsecond but for the rare redraw."""
        self._console.batch(n_images)

    def epoch_finished(
        self,
        task: int,
        epoch: int,
        epochs: int,
        train_loss: float | None,
        validation_loss: float | None = None,
        validation_accuracy: float | None = None,
        learning_rate: float | None = None,
        images: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Records epoch ``epoch`` (from 1) of task ``task``: losses, accuracy in [0, 1], images trained, seconds."""
        shown = {
            "train_loss": train_loss,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "learning_rate": learning_rate,
        }
        self.log("epoch", task=task, epoch=epoch, epochs=epochs, **shown, images=images, seconds=seconds)
        self._console.epoch_finished(epoch, epochs, **shown)

    def task_finished(
        self, task: int, parameters_row: Mapping[str, Any], layer_rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Records the parameter account after task ``task``, for ``parameters.csv`` and ``layers.csv``."""
        row = {**parameters_row, "task": task}
        layers = [{**layer, "task": task} for layer in layer_rows]
        self._parameters.append(row)
        self._layers.extend(layers)
        self.log("task_finished", **row)
        for layer in layers:
            self.log("layer", **layer)
        self.folder.write_parameters(self._parameters)
        self.folder.write_layers(self._layers)
        self._console.task_finished()

    def evaluated(
        self, after_task: int, accuracies: Sequence[float | None], figures: Sequence[Figures | None] | None = None
    ) -> None:
        """Records the accuracies in [0, 1] on all T tasks after ``after_task``; NaN or None where not evaluated.

        Of texts they are the scores, and ``figures`` what is known of each task besides: loss, perplexity, ...
        """
        row = np.array(accuracies, dtype=np.float64)
        n_tasks = len(self._tasks)
        if row.shape != (n_tasks,) or not 0 <= after_task <= n_tasks:
            raise ValueError(f"after task {after_task}: {row.shape} accuracies for a stream of {n_tasks} tasks")
        if after_task == 0:
            self.initial = row
        else:
            self.matrix[after_task - 1] = row
        measured = self._losses.add(after_task, row.tolist(), figures)
        for task, accuracy in enumerate(row.tolist(), start=1):
            if accuracy == accuracy or task in measured:  # not NaN
                self.log("evaluated", after_task=after_task, task=task, accuracy=accuracy, **measured.get(task, {}))
        self.folder.write_matrix(self.initial.tolist(), self.matrix.tolist(), self._tasks)
        if measured:
            self.folder.write_losses(self._losses.rows())
        self._console.evaluation(after_task, row.tolist(), self._losses.row(after_task) if measured else None)

    def probed(self, after_task: int, accuracies: Mapping[str, float | None]) -> None:
        """Records the accuracies in [0, 1] by probe domain after ``after_task``; NaN or None where not evaluated.

        From those before any training and after the last task comes the summary's ``retention``.
        """
        for domain, accuracy in self._probes.add(after_task, accuracies).items():
            self.log("probed", after_task=after_task, domain=domain, accuracy=accuracy)
        if self._probes.domains:
            self.folder.write_probes(self._probes.rows(), self._probes.domains)
            self._console.probes(self._probes.mean(after_task), self._probes.mean(0) if after_task else None)

    def classes_evaluated(
        self, after_task: int, by_task: Mapping[int, Mapping[int, float]], names: Mapping[int, str]
    ) -> None:
        """Records accuracies in [0, 1] by task (from 0) and class id; ``names`` holds the names of the classes."""
        for task, accuracies in sorted(by_task.items()):
            rows = [
                {
                    "after_task": after_task,
                    "class_id": label,
                    "class_name": names.get(label, str(label)),
                    "accuracy": value,
                }
                for label, value in sorted(accuracies.items())
            ]
            shown = {"class_ids": list(accuracies), "accuracies": list(accuracies.values())}
            self.log("classes_evaluated", after_task=after_task, task=task + 1, **shown)
            self._classes += [{**row, "task": task + 1} for row in rows]
        if by_task:
            self.folder.write_classes(self._classes)

    def tasks_inferred(self, after_task: int, shares: Sequence[float | None]) -> None:
        """Records the shares in [0, 1] of each task's samples whose task was recognised without a label.

        Their mean over all tasks after the last one is the summary's ``task_inference_accuracy``.
        """
        for task, share in enumerate(shares, start=1):
            if share is not None and share == share:  # not NaN
                self.log("task_inferred", after_task=after_task, task=task, accuracy=share)
        if after_task == len(self._tasks):
            values = np.array(shares, dtype=np.float64)
            self._summary["task_inference_accuracy"] = None if np.isnan(values).any() else float(values.mean())

    def evaluated_at_rank(
        self,
        rank: int,
        accuracies: Sequence[float | None],
        *,
        after_task: int | None = None,
        losses: Sequence[float | None] | None = None,
    ) -> None:
        """Records accuracies in [0, 1] and losses (nats a token) on all T tasks, the network truncated to ``rank``.

        NaN or None where not evaluated. It was trained on ``after_task`` tasks; None: on all.
        """
        when = {} if after_task is None else {"after_task": after_task}
        for task, accuracy in enumerate(accuracies, start=1):
            loss = {} if losses is None else {"loss": losses[task - 1]}
            row = {"rank": rank, **when, "task": task, "accuracy": accuracy, **loss}
            self.log("evaluated_at_rank", **row)
            self._ranks.append({"after_task": len(self._tasks), **row})
        self.folder.write_rank_curve(self._ranks)

    def warning(self, text: str) -> None:
        """Records a warning and shows it on standard error."""
        self.log("warning", text=text)
        self._console.warning(text)

    def log(self, event: str, /, **fields: Any) -> None:
        """Writes one event to the log and passes it to the trackers; for values that have no method of their own."""
        self._trackers.log(self._events.write(event, **fields))

    def run_finished(self, summary_fields: Mapping[str, Any]) -> dict[str, Any]:
        """Ends a run that did what it was asked: summary, closing table, and ``DONE`` as the last file.

        Returns:
            What ``summary.json`` holds (but for the keys that are null there).
        """
        summary = self._end("done", summary_fields)
        self._draw_report()
        self._console.closing(summary, self._parameters, self.folder.path, self._probes.before_and_after())
        self._close()
        self.folder.mark_done()
        return summary

    def run_failed(
        self,
        error: BaseException,
        status: Literal["failed", "interrupted"],
        summary_fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Ends a run that did not: a summary of what there is, and no ``DONE``. Never raises what hides ``error``."""
        self._console.close()
        reason = f"{type(error).__name__}: {error}"
        try:
            self.log("error", status=status, error=reason, traceback="".join(traceback.format_exception(error)))
            self._end(status, {**(summary_fields or {}), "error": reason})
            self._draw_report()
        except RequestError as second:  # most likely the disk is full, which may be why the run failed
            self._console.warning(second.message)
        finally:
            self._close()

    def _end(self, status: str, summary_fields: Mapping[str, Any]) -> dict[str, Any]:
        last = self._parameters[-1] if self._parameters else {}
        counts = {key: last[column] for key, column in _FROM_PARAMETERS.items() if column in last}
        metrics = summarize(self.matrix, self.initial) if self._tasks else {}
        summary = {**counts, **self._summary, **summary_fields, "status": status, **metrics}
        kept = self._probes.retention()
        for found in (self._losses.summary(), {} if kept is None else {"retention": kept}):
            # a stream that measures one of its own has said so
            summary |= {key: value for key, value in found.items() if summary.get(key) is None}
        self.folder.write_summary(summary)
        self.log("run_ended", **summary)
        return summary

    def _draw_report(self) -> None:
        """Draws what was measured; a picture that cannot be drawn must not cost the run."""
        if self._report is None or np.isnan(self.matrix).all():
            return
        try:
            self._report(self.folder.path)
        except Exception as error:
            text = f"no report was made: {type(error).__name__}: {error}"
            with contextlib.suppress(RequestError):  # the disk may be full, which the files that matter will say
                self.log("warning", text=text)
            self._console.warning(text)

    def _close(self) -> None:
        self._console.close()
        self._events.close()
        self._trackers.close()
