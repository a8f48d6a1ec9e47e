"""Several runs in one process: each in a thread of its own, of which only one does anything at any time.

A run is written for a process of its own: it draws from the process's generators, and sets its threads and flags. So it
gets the process to itself, as it left it, whenever it is its turn, and turns change only between two training steps.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from cl_runner.signals import OF_THREAD, Stop

MEMBER: ContextVar[Member | None] = ContextVar("member", default=None)
"""The place of this thread's run in a company; None where a run is alone."""


@dataclass(eq=False)
class Member:
    """A run among others.

    Attributes:
        company: whom it shares the process with.
        number: its place among them.
        key: what it has in common with those whose steps may be computed with its own; None: nothing.
        stop: says when it is to end.
        waits: it has met others for a step, and waits for those who are still to come.
        request: its strategy, while it waits.
        answer: what the common step gave it: an answer, or what went wrong.
    """

    company: Company
    number: int = 0
    key: str | None = None
    stop: Stop = field(default_factory=Stop)
    waits: bool = False
    request: Any = None
    answer: Any = None
    switching: bool = True
    thread: int = 0
    _turn: Any = field(default_factory=lambda: _held())
    _left: Any = None

    @contextlib.contextmanager
    def at_work(self) -> Iterator[Member]:
        """The body is a run: it begins when it is its turn, with generators as they are then."""
        self.thread = threading.get_ident()
        tokens = MEMBER.set(self), OF_THREAD.set(self.stop)
        try:
            self.company._enter(self)
            yield self
        finally:
            self.switching = True
            self.company._leave(self)
            MEMBER.reset(tokens[0])
            OF_THREAD.reset(tokens[1])

    def pass_on(self) -> None:
        """Lets the others go on, each for a step, before this one does."""
        self.company._pass_on(self)

    def meet(self, strategy: Any) -> Any:
        """Waits until all others have come to a step too; returns what the common step left to this run.

        Raises:
            Exception: the common step went wrong; nothing was learned.
        """
        self.request, self.answer, self.waits = strategy, None, True
        self.company._pass_on(self)
        answer, self.answer = self.answer, None
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None, "who computes a common step answers everyone"
        return answer


def _held() -> Any:
    """A lock that is held: whoever waits for it goes on when another thread lets go of it."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class Company:
    """Who of several runs has the process: in turn, from one step to the next.

    Args:
        steps: computes a step for those who have met, and gives each its `answer`; called where nobody else can go on.
            None: nobody ever meets.

    Attributes:
        switches: how often the process changed hands between two steps.
    """

    def __init__(self, steps: Callable[[list[Member]], None] | None = None) -> None:
        self.steps: Any = steps
        self._began = Process.now()
        self._guard = threading.Lock()
        self._queue: deque[Member] = deque()
        self._running: Member | None = None
        self.switches = 0

    # --------------------------------------------------------------------------------------------- turns

    def _enter(self, member: Member) -> None:
        with self._guard:
            if self._running is None:
                self._running = member
            else:
                self._queue.append(member)
                member.waits = False
        if self._running is not member:
            member._turn.acquire()
        self._began.put_back()
        member.switching = False

    def _leave(self, member: Member) -> None:
        with self._guard:
            if member in self._queue:  # ended by force while it waited
                self._queue.remove(member)
                return
            following = self._next()
            self._running = following
        if following is not None:
            following._turn.release()

    def _pass_on(self, member: Member) -> None:
        """Gives the process to the next in turn, and waits until this one is the next."""
        with self._guard:
            alone = not self._queue
        if alone and not member.waits:
            return
        if alone:
            self._resolve([member])
            return
        member.switching = True
        member._left = Process.now()
        with self._guard:
            self._queue.append(member)
            following = self._next()
            self._running = following
        self.switches += 1
        if following is not member:
            assert following is not None
            following._turn.release()
            member._turn.acquire()
        member._left.put_back()
        if member.waits:  # nobody else can go on: all have come
            self._resolve([member, *(other for other in self._queue if other.waits)])
        member.switching = False

    def _next(self) -> Member | None:
        """Takes the first in the queue that can go on; where all wait for a common step, the first of them."""
        if not self._queue:
            return None
        for member in self._queue:
            if not member.waits:
                self._queue.remove(member)
                return member
        return self._queue.popleft()

    def _resolve(self, members: list[Member]) -> None:
        """The common step of all who have come."""
        members.sort(key=lambda member: member.number)
        try:
            self.steps(members)
        finally:
            for member in members:
                member.waits, member.request = False, None

    # ------------------------------------------------------------------------------------------ the end

    def interrupt(self, members: list[Member], name: str, *, at_once: bool = False) -> None:
        """Asks runs to end as a signal does: one that trains once it has been kept, any other one at once.

        Args:
            members: of this company.
            name: of the signal.
            at_once: without being kept.
        """
        for member in members:
            waits = member.stop.ask(name)
            if (at_once or not waits) and not member.switching and self._running is member:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(member.thread), ctypes.py_object(KeyboardInterrupt)
                )


@dataclass
class Process:
    """What belongs to the whole process and a run sets or draws from, so that it can be put back."""

    python: Any
    numpy: Any
    torch: Any
    cuda: Any
    threads: int
    flags: tuple[Any, ...]
    warned: tuple[Any, Any]

    @classmethod
    def now(cls) -> Process:
        """As it is now."""
        import random

        import numpy as np
        import torch

        flags = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
        )
        return cls(
            random.getstate(),
            np.random.get_state(),
            torch.get_rng_state(),
            torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,
            torch.get_num_threads(),
            flags,
            (warnings.filters, warnings.showwarning),
        )

    def put_back(self) -> None:
        """Puts it back, as far as it has changed."""
        import random

        import numpy as np
        import torch

        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        deterministic, only_warn, chosen = self.flags
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=only_warn)
        torch.backends.cudnn.benchmark = chosen
        if warnings.filters is not self.warned[0]:
            warnings.filters = self.warned[0]
            warnings._filters_mutated()  # type: ignore[attr-defined]
        warnings.showwarning = self.warned[1]
