"""A trace of some training steps: every operation with its time, for the browser."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

QUIET = "99"  # torch's profiler tells standard error that it begins and ends, and that there is no GPU
WARM_UP = 3  # steps before the trace begins, where there are as many: the first ones allocate and choose algorithms


class StepTrace:
    """Traces the first training steps of a run, after a few that warm up; the steps themselves stay what they are.

    The file is Chrome's trace format, to be opened in ui.perfetto.dev or chrome://tracing. It holds what lies between
    the steps as well, such as an evaluation where they reach into the second task.

    Args:
        file: where it goes.
        steps: how many.

    Attributes:
        written: steps that the file holds; 0: there is none.
        problem: why there is none.
    """

    def __init__(self, file: Path, steps: int) -> None:
        self.file, self.steps, self.written = file, steps, 0
        self.problem = "no step was trained"
        self._profile: profile | None = None
        self._seen = self._skipped = 0

    def watch(self, strategy: Any) -> None:
        """Has the strategy's keeper tell of every step."""
        keeper = strategy.keeper
        batches, stepped = keeper.batches, keeper.stepped

        def from_here(strategy: Any) -> Any:
            if self._profile is None and not self._seen:
                self._begin(strategy.epoch_batches * strategy.train_epochs)
            return batches(strategy)

        def and_counted(strategy: Any) -> None:
            stepped(strategy)
            self._step()

        keeper.batches, keeper.stepped = from_here, and_counted

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Around the training: writes what there is where it was over sooner."""
        try:
            yield
        finally:
            self._end()

    def _begin(self, planned: int) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", QUIET)
        self._skipped = max(0, min(WARM_UP, planned - self.steps))
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a first task that is too short to warm up
            plan = schedule(wait=0, warmup=self._skipped, active=self.steps, repeat=1)
        self._profile = profile(activities=activities, schedule=plan, record_shapes=True)
        self._profile.start()

    def _step(self) -> None:
        if self._profile is None:
            return
        self._seen += 1
        if self._seen == self._skipped + self.steps:
            self._end()
        else:
            self._profile.step()

    def _end(self) -> None:
        ended, self._profile = self._profile, None
        if ended is None:
            return
        ended.stop()
        if self._seen <= self._skipped:
            return
        try:
            ended.export_chrome_trace(str(self.file))
            self.written = self._seen - self._skipped
        except (OSError, RuntimeError) as error:  # a full disk must not cost the run
            self.problem = f"{self.file} cannot be written: {error}"
