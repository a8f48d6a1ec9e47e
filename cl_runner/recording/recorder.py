"""The one thing the runner talks to about a run: it passes every value on to files, trackers and the terminal."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cl_runner.errors import RequestError
from cl_runner.recording.console import Console
from cl_runner.recording.evaluations import EvaluationRecords
from cl_runner.recording.events import EventLog, Tracker, Trackers
from cl_runner.recording.measured import Measured
from cl_runner.recording.run_folder import RunFolder


class Recorder(EvaluationRecords):
    """Records a run: told, never asks. Tasks count from 1, "after task 0" is before any training.

    Every call is an event in ``events.jsonl``; the tables are rewritten whenever they grow, so that a run
    that is killed leaves all it had measured.

    Args:
        folder: the run folder.
        events: its event log.
        console: the terminal view.
        trackers: called with every event; one that raises is dropped with a warning.
        report: draws the report into the folder once the summary is there; where it raises, there is a warning.

    Attributes:
        account: where the time went, asked when the run ends; None where nobody counts.
        closing_notes: lines that the terminal shows last.
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
        self._events = events
        self._console = console
        self._trackers = Trackers(trackers, console.warning)
        self._report = report
        self._found = Measured()
        self.account: Callable[[], Mapping[str, Any] | None] = lambda: None
        self.closing_notes: list[str] = []

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
        self._found = Measured(list(tasks), probes, dict(summary_fields or {}))
        self._console.unit, self._console.measure = unit, measure
        announced: dict[str, Any] = {"probes": list(probes)} if probes else {}
        announced |= {} if unit == "images" else {"unit": unit, "measure": measure}
        self.log("run_started", tasks=self._found.tasks, header=dict(header), labels=self._found.summary, **announced)
        self._console.header(header, self._found.tasks)

    @property
    def matrix(self) -> np.ndarray:
        """T x T accuracies in [0, 1], row i - 1 after task i; NaN where not evaluated."""
        return self._found.matrix

    @property
    def initial(self) -> np.ndarray:
        """T accuracies before any training; NaN where not evaluated."""
        return self._found.initial

    @property
    def started(self) -> bool:
        """Whether the run has begun; before that, whatever goes wrong is a refusal."""
        return bool(self._found.tasks)

    def reading(self, done: int, total: int, what: str = "decoding images") -> None:
        """Shows how far what is read has come, ``done`` of ``total``; nothing is recorded."""
        self._console.reading(done, total, what)

    def task_started(self, index: int, name: str, epochs: int, batches: int) -> None:
        """Starts task ``index`` (from 1), planned as ``epochs`` of ``batches`` training steps each."""
        self.log("task_started", task=index, name=name, epochs=epochs, batches=batches)
        self._console.task_started(index, len(self._found.tasks), name, epochs, batches)

    def batch(self, n_images: int) -> None:
        """Counts one training step; costs well under a microsecond but for the rare redraw."""
        self._console.batch(n_images)

    def steps(self, task: int, epoch: int, losses: Sequence[tuple[int, float]]) -> None:
        """Records the losses of some steps of an epoch, each with its number in the epoch, from 1."""
        for step, loss in losses:
            self.log("step", task=task, epoch=epoch, step=step, loss=loss)

    def step_skipped(self, task: int, epoch: int, step: int, samples: Sequence[int]) -> None:
        """Records a step whose loss was no finite number and that was not learned from; shows the first."""
        self.log("step_skipped", task=task, epoch=epoch, step=step, samples=list(samples))
        self._found.skipped += 1
        if self._found.skipped == 1:
            where = f"step {step} of epoch {epoch} of task {task}"
            self._console.warning(f"{where} was skipped, its loss is no finite number; the end says how many were")

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
        self._found.parameters.append(row)
        self._found.layers.extend(layers)
        self.log("task_finished", **row)
        for layer in layers:
            self.log("layer", **layer)
        self.folder.write_parameters(self._found.parameters)
        self.folder.write_layers(self._found.layers)
        self._console.task_finished()

    def warning(self, text: str) -> None:
        """Records a warning and shows it on standard error."""
        self.log("warning", text=text)
        self._console.warning(text)

    def log(self, event: str, /, **fields: Any) -> None:
        """Writes one event to the log and passes it to the trackers; for values that have no method of their own."""
        record = self._events.write(event, **fields)
        if not self._events.silent or event == "run_started":  # which says whose run it is
            self._trackers.log(record)

    def silence(self, silent: bool, done: int = 0) -> None:
        """Records no events, or does again: a run that is taken up goes through what it has recorded before.

        ``done`` are the steps of the present task that it finds done.
        """
        self._events.silent = silent
        self._console.take_up(done)

    def settled(self) -> tuple[int, str]:
        """Waits until the event log is on the disk; returns its bytes, and their SHA-256."""
        return self._events.settled()

    def saved(self) -> dict[str, Any]:
        """What was measured so far, in plain values."""
        return self._found.saved()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on with what an earlier attempt had measured, and shows it."""
        self._found.restore(state)
        for after, row in self._found.evaluated():
            losses = self._found.losses.row(after)
            self._console.evaluation(after, row, losses if any(item is not None for item in losses) else None)

    def resumed(self, where: str) -> None:
        """Records that the run goes on, and from where."""
        self.silence(False)
        self.log("resumed", where=where)

    def run_finished(self, summary_fields: Mapping[str, Any], status: str = "done") -> dict[str, Any]:
        """Ends a run that did what it was asked: summary, closing table, and ``DONE`` as the last file.

        Returns:
            What ``summary.json`` holds (but for the keys that are null there).
        """
        if skipped := summary_fields.get("skipped_steps"):
            self.warning(f"{skipped:,} training steps were skipped: their losses were no finite numbers")
        summary = self._end(status, summary_fields)
        self.draw_report()
        self._console.closing(summary, self._found.parameters, self.folder.path, self._found.probes.before_and_after())
        self._trackers.close()  # whatever that takes belongs to the account
        account = self.account()
        if account is not None:
            self._events.write("time_account", **account)
            self._console.account(account)
        for text in self.closing_notes:
            self._console.note(text)
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
            self.draw_report()
        except RequestError as second:  # most likely the disk is full, which may be why the run failed
            if not isinstance(error, RequestError):
                self._console.warning(second.message)
        finally:
            self._close()

    def _end(self, status: str, summary_fields: Mapping[str, Any]) -> dict[str, Any]:
        summary = self._found.summarise(status, summary_fields)
        self.folder.write_summary(summary)
        self.log("run_ended", **summary)
        return summary

    def draw_report(self) -> None:
        """Draws what was measured; a picture that cannot be drawn must not cost the run."""
        if self._report is None or np.isnan(self._found.matrix).all():
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
