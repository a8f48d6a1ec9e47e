"""Who looks on while a run trains, without changing it: the account of its time, and the trace of some steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from cl_runner.recording.recorder import Recorder
from cl_runner.recording.run_folder import RunFolder
from cl_runner.training.timing import NoTimer

TOLD = (  # to a recorder; of a single step it only counts the images
    "run_started", "task_started", "steps", "step_skipped", "epoch_finished", "task_finished", "evaluated", "probed",
    "classes_evaluated", "tasks_inferred", "evaluated_at_rank", "warning", "log", "run_finished",
)  # fmt: skip
EVALUATED = ("evaluate", "trace_ranks")  # by a run
KEPT = ("run_begins", "phase_trained", "phase_evaluated", "keep_step", "take_up")  # by a keeper


def account_for(timer: NoTimer, run: Any, recorder: Recorder) -> None:
    """Has the parts of a run counted under their names, and the account told when the run ends."""
    run.strategy.timer, recorder.account = timer, timer.account
    timer.around(run.keeper, "checkpoint", *KEPT)
    timer.around(run, "evaluation", *EVALUATED)
    timer.around(recorder, "tracking", *TOLD)
    timer.around(recorder, "report", "draw_report")


@contextlib.contextmanager
def traced(config: DictConfig, folder: RunFolder, recorder: Recorder, strategy: Any) -> Iterator[None]:
    """Traces the first steps of what is trained within, where `trainer.trace_steps` asks for it; says where it is."""
    if config.trainer.trace_steps is None:
        yield
        return
    from cl_runner.training.trace import StepTrace

    trace = StepTrace(folder.path / "trace.json", config.trainer.trace_steps)
    trace.watch(strategy)
    with trace.whole():
        yield
    if not trace.written:
        recorder.warning(f"no trace: {trace.problem}")
        return
    recorder.log("traced", file=str(trace.file), steps=trace.written)
    recorder.closing_notes.append(f"trace of {trace.written} steps: {trace.file} (open it in ui.perfetto.dev)")
