"""What a cell in another process must know of its sweep: whether it is still wanted."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from cl_runner.recording.lock import SWEEP, alive, identity


@dataclass(frozen=True)
class Ticket:
    """A sweep under way.

    Args:
        stop: a file that, once it is there, lets no further cell begin.
        fail_fast: a cell that does not end well makes that file.
    """

    stop: str
    fail_fast: bool

    def for_engine(self, target: str) -> dict[str, str]:
        """Returns the environment that a launcher gives its cells.

        A queued job outlives whoever submitted it; elsewhere cells are of no use once that process is gone.
        """
        parent = None if target.endswith("SlurmLauncher") else identity()
        return {SWEEP: json.dumps({"stop": self.stop, "fail_fast": self.fail_fast, "parent": parent})}

    def halt(self) -> None:
        """Lets no further cell begin."""
        _touch(self.stop)

    def close(self) -> None:
        """Removes the file that says so."""
        with contextlib.suppress(OSError):
            Path(self.stop).unlink()


def wanted() -> bool:
    """Whether this cell's sweep still wants it to begin; asked in the process that is about to run it."""
    ticket = json.loads(os.environ.get(SWEEP, "{}"))
    parent = ticket.get("parent")
    return not (ticket and Path(ticket["stop"]).exists()) and (parent is None or alive(parent))


def ended(code: int) -> None:
    """Notes how a cell ended, in the process that ran it."""
    ticket = json.loads(os.environ.get(SWEEP, "{}"))
    if code and ticket.get("fail_fast"):
        _touch(ticket["stop"])


def _touch(stop: str) -> None:
    with contextlib.suppress(OSError):  # a full disk must not hide why the sweep ends
        Path(stop).touch()
