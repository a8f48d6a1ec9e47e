"""The terminal view of a run: composed, progress, the accuracy matrix growing row by row, a closing table.

Where standard output is not a terminal it writes plain lines: no escape codes, no bars, few lines.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich import console as rich_console
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cl_runner.metrics.cost import format_seconds
from cl_runner.recording.account_view import account_table
from cl_runner.recording.closing_view import Closing, Probed, number, percent
from cl_runner.recording.matrix_view import MatrixView, probe_line, shortened
from cl_runner.recording.plan_view import plan_tables
from cl_runner.recording.progress import Clock
from cl_runner.recording.reading_view import ReadingView

REFRESH_SECONDS = 0.2
PLAIN_EPOCH_SECONDS = 10.0  # between two epoch lines where there is no terminal; the last epoch always has one


class Console:
    """Shows a run to a person; every call is cheap enough to be made from the training loop.

    On a terminal one status area at the bottom shows task, epoch, images/s and the time left over the
    whole stream; everything else scrolls past above it. Warnings go to standard error.

    Attributes:
        unit: what a batch is made of, in the plural.
        measure: what the entries of the matrix are called.

    Args:
        quiet: write nothing but warnings.
        stdout: where to write; default ``sys.stdout``.
        stderr: where to warn; default ``sys.stderr``.
        width: columns; default those of the terminal, 100 where there is none.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        width: int | None = None,
    ) -> None:
        self.unit, self.measure = "images", "accuracy"
        self._quiet = quiet
        self._out = _rich(stdout, width=width, quiet=quiet)
        self._err = _rich(stderr, width=width, stderr=True)
        self._terminal = self._out.is_terminal and not self._out.is_dumb_terminal
        self._live: Live | None = None
        self._matrix: MatrixView | None = None
        self._names: list[str] = []
        self._clock = Clock()
        self._next_refresh = math.inf  # no terminal, nothing to refresh
        self._next_epoch_line = 0.0
        self._task_line = self._epoch_line = ""
        self.reading = ReadingView(self._out, self._terminal)

    def header(self, rows: Mapping[str, str], tasks: Sequence[str]) -> None:
        """Shows what was composed and the names of the tasks in order."""
        self._names = list(tasks)
        shown = [f"{number} {shortened(name, 28)}" for number, name in enumerate(tasks, start=1)]
        if len(shown) > 24:
            shown[20:] = [f"... {len(tasks) - 20} more"]
        key = f"{len(tasks)} tasks" if len(tasks) != 1 else "1 task"
        key_width = max(map(len, [key, *rows]))
        if not self._terminal:
            self._print("cl-run")
            for name, value in [*rows.items(), (key, " | ".join(shown))]:
                self._print(f"  {name:<{key_width}}  {value}")
            return
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold cyan", no_wrap=True, min_width=key_width + 1)
        grid.add_column(overflow="fold")
        for name, value in rows.items():
            grid.add_row(f" {name}", Text(str(value)))
        grid.add_row(f" {key}", Columns([Text(name) for name in shown], padding=(0, 3)))
        self._out.rule(Text("cl-run", style="bold"), style="cyan")
        self._out.print(grid)
        self._out.rule(style="cyan")

    def task_started(self, index: int, n_tasks: int, name: str, epochs: int, batches: int) -> None:
        """Starts task ``index`` of 1 .. ``n_tasks``, planned as ``epochs`` times ``batches`` training steps."""
        now = time.monotonic()
        self._clock.start_task(index, n_tasks, epochs * batches, now)
        self._task_line = f"task {index}/{n_tasks}  {shortened(name, 32)}"
        self._epoch_line = f"epoch 1/{epochs}"
        self._next_epoch_line = now + PLAIN_EPOCH_SECONDS
        if not self._terminal:
            self._print(f"task {index}/{n_tasks}  {name}: {epochs} x {batches} steps")
        elif not self._quiet:
            self._start_live()

    def take_up(self, steps: int) -> None:
        """Counts the steps of this task that an earlier attempt has done."""
        self._clock.take_up(steps)
        self._refresh()

    def batch(self, n_images: int) -> None:
        """Counts one training step; draws at most every ``REFRESH_SECONDS``."""
        clock = self._clock
        clock.images += n_images
        clock.steps += 1
        if time.monotonic() >= self._next_refresh:
            self._refresh()

    def epoch_finished(
        self,
        epoch: int,
        epochs: int,
        train_loss: float | None,
        validation_loss: float | None = None,
        validation_accuracy: float | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """Shows how epoch ``epoch`` of 1 .. ``epochs`` went; None where a value does not exist."""
        parts = [f"loss {number(train_loss)}"]
        if validation_loss is not None or validation_accuracy is not None:
            parts.append(f"validation {number(validation_loss)} / {percent(validation_accuracy)}")
        if learning_rate is not None:
            parts.append(f"lr {learning_rate:.3g}")
        now = time.monotonic()
        self._epoch_line = "  ".join([f"epoch {min(epoch + 1, epochs)}/{epochs}", *parts])
        if not self._terminal and (epoch >= epochs or now >= self._next_epoch_line):
            self._next_epoch_line = now + PLAIN_EPOCH_SECONDS
            left = self._clock.left(now)
            tail = [f"{self._clock.mean_rate(now):,.0f} {self.unit}/s", f"{format_seconds(left)} left" if left else ""]
            self._print("  ".join([f"  epoch {epoch}/{epochs}", *parts, *tail]).rstrip())

    def task_finished(self) -> None:
        """Says that training on the present task has ended, on time or early, and that evaluation follows."""
        self._epoch_line = "evaluating"
        self._refresh()

    def evaluation(
        self, row: int, accuracies: Sequence[float | None], losses: Sequence[float | None] | None = None
    ) -> None:
        """Adds the accuracies in [0, 1] after ``row`` tasks to the matrix; None or NaN = not evaluated.

        Below them stand the losses (nats a token), where there are any.
        """
        known = [None if value is None or math.isnan(value) else float(value) for value in accuracies]
        if self._matrix is None:
            names = self._names or [str(number + 1) for number in range(len(known))]
            self._matrix = MatrixView.fit(names, self._out.width)
            for line in self._matrix.title(self.measure):
                self._print(line)
        for line in [*self._matrix.row(row, known), *([] if losses is None else self._matrix.losses(row, losses))]:
            self._print(line)

    def note(self, text: str) -> None:
        """Writes a line."""
        self._print(text)

    def warning(self, text: str) -> None:
        """Writes a line to standard error; the status area makes way for it."""
        live = self._live
        self.close()
        self._err.print(Text(f"warning: {text}", style="yellow"), soft_wrap=not self._err.is_terminal)
        if live is not None:
            self._start_live()

    def probes(self, mean: float | None, before: float | None) -> None:
        """Adds a line below the matrix's last row: the mean over the probe domains, now and before any training."""
        self._print(probe_line(mean, before))

    def closing(
        self,
        summary: Mapping[str, Any],
        parameters: Sequence[Mapping[str, Any]],
        folder: Path,
        probes: Sequence[Probed] = (),
    ) -> None:
        """Ends the view with the metrics and costs of ``summary.json`` and where the run folder is."""
        self.close()
        title = f"{summary.get('experiment') or 'run'}: {summary.get('status') or 'done'}"
        closing = Closing(summary, parameters, probes, self.unit, self.measure)
        if not self._terminal:
            for line in [title, *closing.lines(), f"run folder: {folder}"]:
                self._print(line)
            return
        self._out.print(closing.table(title))
        self._print(Text.assemble(("run folder: ", "bold"), str(folder)))

    def account(self, account: Mapping[str, Any]) -> None:
        """Shows where the time went, below everything else."""
        self._out.print(account_table(account))

    def plan(
        self,
        tasks: Sequence[Mapping[str, Any]],
        parameters: Sequence[Mapping[str, Any]],
        layers: Sequence[Mapping[str, Any]],
        summary: Mapping[str, Any],
        warnings: Sequence[str],
        folder: Path,
    ) -> None:
        """Shows a plan: tasks, parameters, layers and FLOPs, and where its files are."""
        for text in warnings:
            self.warning(text)
        for part in plan_tables(tasks, parameters, layers, summary):
            self._out.print(part)
        self._print(f"plan folder: {folder}")

    def close(self) -> None:
        """Takes the status area away; safe to call at any time and more than once."""
        self.reading.close()
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._next_refresh = math.inf

    def _print(self, text: str | Text) -> None:
        line = text if isinstance(text, Text) else Text(text)
        if not self._terminal:
            line.rstrip()
        self._out.print(line, soft_wrap=True)  # long lines stay whole, so that a path can be copied

    def _start_live(self) -> None:
        if self._live is None:
            self._live = Live(
                console=self._out, auto_refresh=False, transient=True, redirect_stderr=self._err.is_terminal
            )
            self._live.start()
        self._refresh()

    def _refresh(self) -> None:
        now = time.monotonic()
        self._next_refresh = now + REFRESH_SECONDS
        if self._live is not None:
            self._live.update(self._status(now), refresh=True)

    def _status(self, now: float) -> RenderableType:
        left = self._clock.left(now)
        text = Text.assemble((self._task_line, "bold"), "   ", self._epoch_line, no_wrap=True, overflow="ellipsis")
        bar = Table.grid(expand=True, padding=(0, 2, 0, 0))
        bar.add_column(ratio=1)
        for width in (5, 18, 18):
            bar.add_column(justify="right", no_wrap=True, width=width)
        bar.add_row(
            ProgressBar(total=1.0, completed=self._clock.fraction()),
            f"{self._clock.fraction():.0%}",
            f"{self._clock.rate(now):,.0f} {self.unit}/s",
            "" if left is None else f"{format_seconds(left)} left",
        )
        return Group(text, bar)


class _Console(rich_console.Console):
    """A console whose reader may leave: the run goes on unseen."""

    def on_broken_pipe(self) -> None:
        """Says nothing more, where rich would end the process."""
        self.quiet = True
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def _rich(
    stream: TextIO | None, *, width: int | None, stderr: bool = False, quiet: bool = False
) -> rich_console.Console:
    target = stream or (sys.stderr if stderr else sys.stdout)
    encoding = (getattr(target, "encoding", None) or "utf-8").lower().replace("-", "")
    if encoding != "utf8" and hasattr(target, "reconfigure"):
        target.reconfigure(errors="replace")  # a name the terminal cannot show must not end a run
    terminal = target.isatty()  # and not what FORCE_COLOR says: bars make a log file unreadable
    if not terminal and width is None and not os.environ.get("COLUMNS"):
        width = 100
    return _Console(
        file=stream,
        stderr=stderr,
        force_terminal=terminal,
        quiet=quiet,
        width=width,
        markup=False,
        emoji=False,
        highlight=False,
    )
