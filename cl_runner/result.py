"""What a run gives back to its caller."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
