"""What a run gives back to its caller, and what a sweep keeps of a cell."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        folder: the run folder.
        summary: what `summary.json` holds; for `mode=plan` the figures of the plan.
        matrix: T rows of accuracies after each task, None where not evaluated; empty for `mode=plan`.
        initial: accuracies before training.
        network: the trained network, where this process trained it.
    """

    folder: Path
    summary: dict[str, Any]
    matrix: list[list[float | None]] = field(default_factory=list)
    initial: list[float | None] = field(default_factory=list)
    network: Any = field(default=None, repr=False)


Status = Literal["done", "failed", "refused", "interrupted"]
EXIT_CODES: dict[Status, int] = {"done": 0, "failed": 1, "refused": 2, "interrupted": 130}


@dataclass(frozen=True)
class Outcome:
    """How a request ended: small, and picklable, for it may come back from another process or machine.

    Attributes:
        status: done, failed, refused or interrupted.
        typed: the overrides of this request.
        folder: its run folder; for a cell also where it was refused and there is none.
        sweep: the folder of the sweep it is a cell of; None for a plan and for a run that is no cell.
        message: what was said where it did not end well, without the trailing newline.
        summary: what `summary.json` holds; for `mode=plan` the figures of the plan.
        objective: the figure that a sweeper optimises.
        skipped: it was done before.
    """

    status: Status
    typed: tuple[str, ...] = ()
    folder: Path | None = None
    sweep: Path | None = None
    message: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    objective: float | None = None
    skipped: bool = False

    @property
    def code(self) -> int:
        """The exit code that says so."""
        return EXIT_CODES[self.status]

    @property
    def error(self) -> str:
        """The first line of what was said, without the name of the command."""
        return self.message.partition("\n")[0].removeprefix("cl-run: ")
