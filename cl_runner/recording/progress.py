"""How fast a run goes and how long it still takes, from counts alone; times in seconds of one monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass

_WINDOW_SECONDS = 0.1  # the shortest time over which a speed is measured


@dataclass
class Clock:
    """Counts steps and images and tells speed and the time left over the whole stream.

    Tasks to come are taken to be as long as the present one, and a step to take as long as it has taken so
    far, evaluation included. A task that stopped early counts as its real steps.
    """

    images: int = 0
    steps: int = 0
    _started: float | None = None
    _tasks_left: int = 0
    _task_steps: int = 1
    _steps_before: int = 0
    _images_before: int = 0
    _earlier: int = 0  # steps of earlier attempts, which took none of this one's time
    _earlier_in_task: int = 0
    _task_started: float = 0.0
    _window: tuple[float, int] = (0.0, 0)
    _rate: float = 0.0

    def start_task(self, index: int, n_tasks: int, steps: int, now: float) -> None:
        """Starts task ``index`` of ``n_tasks``, planned as ``steps`` training steps, at the time ``now``."""
        self._started = now if self._started is None else self._started
        self._tasks_left = n_tasks - index
        self._task_steps = max(steps, 1)
        if not self.steps:
            self._earlier = (index - 1) * self._task_steps
        self._earlier_in_task = 0
        self._steps_before, self._images_before = self.steps, self.images
        self._task_started = now
        self._window = (now, self.images)

    def take_up(self, steps: int) -> None:
        """Counts the steps of this task that an earlier attempt has done."""
        self._earlier += steps
        self._earlier_in_task = steps

    def steps_left(self) -> int:
        """Returns the steps left in the whole stream."""
        present = max(self._task_steps - self._earlier_in_task - (self.steps - self._steps_before), 0)
        return present + self._tasks_left * self._task_steps

    def fraction(self) -> float:
        """Returns the part of the stream that is done, 0 to 1."""
        done = self._earlier + self.steps
        return done / max(done + self.steps_left(), 1)

    def left(self, now: float) -> float | None:
        """Returns seconds, None before there is anything to judge by."""
        if self._started is None or self.steps == 0 or now - self._started < 1.0:
            return None
        return (now - self._started) / self.steps * self.steps_left()

    def rate(self, now: float) -> float:
        """Returns images/s, smoothed over the last few calls."""
        then, images = self._window
        if now - then >= _WINDOW_SECONDS:
            latest = (self.images - images) / (now - then)
            self._rate = latest if self._rate == 0.0 else 0.7 * self._rate + 0.3 * latest
            self._window = (now, self.images)
        return self._rate or self.mean_rate(now)

    def mean_rate(self, now: float) -> float:
        """Returns images/s since the task started."""
        return (self.images - self._images_before) / max(now - self._task_started, 1e-9)
