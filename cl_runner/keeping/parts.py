"""What of a run has a state, and how often it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cl_runner.recording.recorder import Recorder
from cl_runner.strategies.memories import Samples
from cl_runner.training.monitor import TrainingMonitor
from cl_runner.training.plugin import AdapterPlugin

State = dict[str, Any]


@dataclass(frozen=True)
class Interval:
    """How often a run is kept within a task.

    Attributes:
        epochs: after so many; None: not by epochs.
        minutes: where so many have passed; None: not by time.
    """

    epochs: int | None
    minutes: float | None


@dataclass
class Parts:
    """The parts of a run that have a state.

    Attributes:
        strategy: the Avalanche strategy, with network and lane.
        monitor, plugin: two of its plugins.
        samples: the stream's, by their ids.
        recorder: what was recorded.
        phases: experiences that are trained together, in order.
        facts: what must be the same for the run to go on, by name, e.g. the configuration.
        epochs: begun in each phase that is done.
        seconds: that the run took before this attempt.
    """

    strategy: Any
    monitor: TrainingMonitor
    plugin: AdapterPlugin
    samples: Samples
    recorder: Recorder
    phases: Sequence[Sequence[Any]]
    facts: State
    epochs: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def tasks(self, done: int) -> list[list[int]]:
        """The tasks of the first phases."""
        return [[item.current_experience for item in phase] for phase in self.phases[:done]]
