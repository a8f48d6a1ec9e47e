"""Signals that ask a run to end: at once, or where a task is being trained, as soon as it has been kept."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # the last two: Slurm's warning that time is up


class Stop:
    """Whether a run was asked to end, and by which signal.

    Attributes:
        requested: the signal's name, while what goes on is to be brought to a point where it can be kept.
        passed_on: what else handles a signal, by its name.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._waits = False
        self.passed_on: dict[str, Callable[..., Any]] = {}

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Signals are heeded where the body asks, with `end_if_requested`; a second one ends it at once."""
        self._waits = True
        try:
            yield
        except BaseException:
            self.requested = None  # what goes on has ended in another way
            raise
        finally:
            self._waits = False
        self.end_if_requested()

    def end_if_requested(self) -> None:
        """Ends what goes on.

        Raises:
            KeyboardInterrupt: the run was asked to end.
        """
        if self.requested is not None:
            self._end(self.requested)

    def ask(self, name: str) -> bool:
        """Asks what goes on in another thread to end; returns whether it will, once it has been kept."""
        if self._waits:
            self.requested = self.requested or name
        return self._waits

    def heard(self, signum: int, frame: Any) -> None:
        """Handles a signal."""
        name = signal.Signals(signum).name
        if self._waits and self.requested is None:
            self.requested = name
        else:
            self._end(name)

    def _end(self, name: str) -> None:
        self.requested = None
        if name in self.passed_on:  # a launcher's, which puts the job back into its queue
            self.passed_on[name](getattr(signal, name), None)
        raise KeyboardInterrupt(name)


STOP = Stop()
"""That of this process: signals are handled once, whoever asked for it."""

OF_THREAD: ContextVar[Stop | None] = ContextVar("stop", default=None)
"""That of a run in a thread of its own, which hears no signals but is asked by those who do; None: it is `STOP`."""


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Lets `STOP` hear SIGINT, SIGTERM and Slurm's warnings as long as the body runs."""
    earlier: dict[str, Any] = {}
    try:
        for name in NAMES:
            if hasattr(signal, name):
                earlier[name] = signal.signal(getattr(signal, name), STOP.heard)
    except ValueError:  # not in the main thread, where signals are not ours to handle
        yield OF_THREAD.get() or STOP
        return
    passed_on = STOP.passed_on
    own = {name: handler for name, handler in earlier.items() if name.startswith("SIGUSR") and handler != STOP.heard}
    STOP.passed_on = {name: handler for name, handler in own.items() if callable(handler)} or passed_on
    try:
        yield STOP
    finally:
        STOP.passed_on = passed_on
        if STOP.heard not in earlier.values():  # the outermost: what nobody heeded was for what ends here
            STOP.requested = None
        for name, handler in earlier.items():
            if handler is not None:  # one that was not set from Python cannot be put back
                signal.signal(getattr(signal, name), handler)
