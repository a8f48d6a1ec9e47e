"""What a run leaves behind: the run folder, the event log, the terminal view. Told, never asks; torch-free."""

from __future__ import annotations

from cl_runner.recording.console import Console
from cl_runner.recording.environment import describe
from cl_runner.recording.events import CsvTracker, EventLog, Tracker, read_events
from cl_runner.recording.recorder import Recorder
from cl_runner.recording.run_folder import RunFolder

__all__ = ["Console", "CsvTracker", "EventLog", "Recorder", "RunFolder", "Tracker", "describe", "read_events"]
