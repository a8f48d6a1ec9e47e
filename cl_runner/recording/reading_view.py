"""What a person sees while images are decoded, or texts read, for the first time: a bar, or a line now and then."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

FIRST_SECONDS = 2.0  # what takes less is not worth a line
LINE_SECONDS = 10.0


class ReadingView:
    """Shows how far the reading of a dataset has come; cheap enough to be called for every image.

    Args:
        out: the terminal.
        terminal: whether it can redraw; where not, a line is written every ten seconds.
    """

    def __init__(self, out: Console, terminal: bool) -> None:
        self._out, self._terminal = out, terminal
        self._bar: Progress | None = None
        self._next_line = 0.0
        self._reading = (0, "")

    def __call__(self, done: int, total: int, what: str = "decoding images") -> None:
        """Shows that ``done`` of ``total`` are there; ``what`` is being done."""
        now = time.monotonic()
        if (total, what) != self._reading or not self._next_line:
            self.close()
            self._reading, self._next_line = (total, what), now + FIRST_SECONDS
        if self._terminal:
            self._draw(done, total, what)
        elif now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            self._out.print(f"{what}: {done:,} of {total:,}")
        if done >= total:
            self.close()

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._next_line = None, 0.0

    def _draw(self, done: int, total: int, what: str) -> None:
        if self._bar is None:
            columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._out, transient=True)
            self._bar.add_task(what, total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done)
