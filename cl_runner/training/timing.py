"""Where the time of a run goes: an account that adds up."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

STEP_PARTS = ("data", "forward", "loss", "backward", "optimiser", "adapter", "hooks", "monitor")
RUN_PARTS = (
    "start", "imports", "building", "reading data", *STEP_PARTS, "tasks", "validation", "evaluation", "checkpoint",
    "tracking", "report",
)  # fmt: skip
"""In this order: before the first step, in every training step, and besides."""
OTHER = "other"


class NoTimer:
    """Accounts for nothing, and costs nothing."""

    def mark(self, name: str) -> None:
        """Does nothing."""

    def apart(self, name: str) -> AbstractContextManager[None]:
        """Does nothing."""
        return contextlib.nullcontext()

    def around(self, owner: Any, name: str, *methods: str) -> None:
        """Does nothing."""

    def on(self, device: Any) -> None:
        """Does nothing."""

    def account(self) -> dict[str, Any] | None:
        """None."""
        return None


class Timer(NoTimer):
    """An account of time: every second since ``began`` belongs to exactly one name.

    The time between two marks belongs to the name of the second. What happens within `apart` belongs to that name
    instead, and is not counted a second time around it; a mark within it counts as "NAME: MARK".

    Args:
        began: when the account begins, on the clock of `time.perf_counter`; None: now.
    """

    def __init__(self, began: float | None = None) -> None:
        self.began = self._since = time.perf_counter() if began is None else began
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._wait: Callable[[], None] | None = None
        self._open: list[tuple[str, float]] = []  # what is apart, and the seconds that it interrupted

    def on(self, device: Any) -> None:
        """Waits from now on for this torch device before it looks at the clock, where the device works by itself."""
        import torch

        if device.type == "mps":
            self._wait = torch.mps.synchronize
        elif device.type == "cuda":

            def wait() -> None:
                if not torch.cuda.is_current_stream_capturing():  # where nothing runs, and waiting is an error
                    torch.cuda.synchronize(device)

            self._wait = wait

    def mark(self, name: str) -> None:
        """Adds the time since the last mark to a name; on a GPU it waits for the device, which slows the run."""
        self._add(f"{self._open[-1][0]}: {name}" if self._open else name, self._now())

    @contextlib.contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Counts what happens within as ``name``, and not as what it interrupts."""
        now = self._now()
        self._open.append((name, now - self._since))
        self._since = now
        try:
            yield
        finally:
            now = self._now()
            self._add(name, now)
            self._since = now - self._open.pop()[1]

    def around(self, owner: Any, name: str, *methods: str) -> None:
        """Counts these methods of an object as ``name`` from now on."""
        for method in methods:
            setattr(owner, method, self._counted(getattr(owner, method), name))

    def account(self) -> dict[str, Any]:
        """The account so far.

        Returns:
            ``wall_seconds``; ``steps``, training steps; ``parts``: seconds by name in the order of the run, which add
            up to ``wall_seconds``: what no name was given for is "other"; ``step_parts``: names of what a step is.
        """
        now = self._now()
        seconds = dict(self.seconds)
        if self._open:  # what is under way
            names = [name for name, _ in self._open]
            under_way = [*(pending for _, pending in self._open[1:]), now - self._since]
            for name, spent in zip(names, under_way, strict=True):
                seconds[name] = seconds.get(name, 0.0) + spent
        order = {name: place for place, name in enumerate(RUN_PARTS)}
        names = sorted(seconds, key=lambda name: order.get(name.partition(":")[0], len(order)))
        wall = now - self.began
        parts = {name: seconds[name] for name in names}
        return {
            "wall_seconds": wall,
            "steps": self.counts.get("data", 0),
            "step_parts": list(STEP_PARTS),
            "parts": parts | {OTHER: max(0.0, wall - sum(parts.values()))},
        }

    def _counted(self, method: Any, name: str) -> Any:
        @functools.wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.apart(name):
                return method(*args, **kwargs)

        return counted

    def _now(self) -> float:
        if self._wait is not None:
            self._wait()
        return time.perf_counter()

    def _add(self, name: str, now: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self.counts[name] = self.counts.get(name, 0) + 1
        self._since = now
