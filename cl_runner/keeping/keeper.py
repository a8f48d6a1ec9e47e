"""When a run is kept, and what of it: after every task, at intervals within one, and when it is asked to stop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from safetensors.torch import save

from cl_runner.errors import RequestError
from cl_runner.keeping import randomness, weights
from cl_runner.keeping.packing import Packer
from cl_runner.keeping.parts import Interval, Parts
from cl_runner.keeping.reading import read_state
from cl_runner.recording.checkpoints import Checkpoint, Checkpoints
from cl_runner.signals import Stop
from cl_runner.strategies.courses import courses, take_up_all
from cl_runner.strategies.memories import CannotBeKept, memories, remember_all
from cl_runner.training.keeper import KeepsNothing

State = dict[str, Any]


class Keeper(KeepsNothing):
    """Writes checkpoints, and takes a run up again from one.

    Between two tasks everything is kept; within a task only what moves, on top of the checkpoint before it. A task that
    is taken up begins anew, from the network and the generators with which it began, so that its plugins derive again
    what they derive from those; then what has moved since is put in its place.

    Args:
        parts: of the run.
        checkpoints: where they are written; None: nothing is written.
        interval: how often within a task.
        stop: says when the run is to end.
    """

    def __init__(self, parts: Parts, checkpoints: Checkpoints | None, interval: Interval, stop: Stop) -> None:
        self._parts, self._checkpoints, self._interval, self.stop = parts, checkpoints, interval, stop
        self._network = parts.plugin.network
        self._initial = weights.fingerprints(self._network) if checkpoints is not None else {}
        self._first_weights = weights.everything(self._network)
        self._began = self._written = time.monotonic()
        self._base: int | None = None
        self._pending: State | None = None
        self._task: State = {}
        self.last: int | None = None
        self.seconds_writing = 0.0

    # ------------------------------------------------------------------------------------------ going on

    def take_up(self, checkpoint: Checkpoint) -> tuple[int, bool]:
        """Brings a fresh run to where a checkpoint was made.

        Returns:
            How many phases are done, and whether the last of them has been evaluated.

        Raises:
            RequestError: it was made by another configuration, or with other weights or data.
        """
        parts = self._parts
        between, later = (checkpoint, None) if checkpoint.base is None else (checkpoint.base, checkpoint)
        try:
            state = self._read(between)
            _same(state["facts"], parts.facts)
            done = state["done"]
            parts.epochs = list(state["epochs"])
            weights.relive(self._network, parts.tasks(done), parts.epochs)
            weights.write(weights.everything(self._network), state["network"])
            learned = [item for phase in parts.phases[:done] for item in phase]
            remember_all(parts.strategy, state["strategy"], parts.samples, learned)
            self._hold(state["optimizer"])
            between_tasks = state["adapter"]
            state |= {} if later is None else self._read(later)
        except (weights.OtherNetwork, LookupError) as problem:
            raise RequestError(
                f"checkpoint {between.number} does not fit: {problem}; the weights or the versions of torch and cl-run "
                "are not those the run began with",
                "put them back, or start a new run",
            ) from problem
        self._network.adapter.remember(between_tasks)
        self._network.activate(state["active"])
        parts.monitor.restore(state["monitor"])
        parts.strategy.guard.skipped = state["skipped"]
        parts.recorder.restore(state["recorder"])
        parts.seconds = state["seconds"]
        self._base, self.last = between.number, checkpoint.number
        parts.recorder.resumed(checkpoint.where)
        if "start" in state:
            parts.recorder.silence(True)  # until the task is where it was
            self._pending = state
            randomness.restore(state["start"], parts.strategy.lane.generator)
        else:
            randomness.restore(state["random"], parts.strategy.lane.generator)
        return done, bool(state["evaluated"])

    def first_epoch(self, strategy: Any) -> int:
        """The epoch with which the task goes on; the ranks that it had by then are brought about again."""
        self.step = 0
        if self._pending is None:
            return 0
        epoch: int = self._pending["epoch"]
        for earlier in range(epoch):
            strategy.clock.train_exp_epochs = earlier
            self._parts.plugin.before_training_epoch(strategy)
        strategy.clock.train_exp_epochs = epoch  # which the plugins of this epoch go by
        if not self._pending["step"]:
            self._continue()
        return epoch

    def batches(self, strategy: Any) -> Iterable[Any]:
        """The batches of the epoch, without those that the run had before it was interrupted."""
        generator: torch.Generator = strategy.lane.generator
        self.step = 0
        if self._pending is None:
            self._task["order"] = generator.get_state()
            return iter(strategy.dataloader)
        generator.set_state(self._pending["order"])
        self._task["order"] = self._pending["order"]
        batches: Iterator[Any] = iter(strategy.dataloader)
        steps = self._pending["step"]
        for _ in range(steps):
            next(batches)
        self._continue()
        self.step = steps
        return batches

    def _continue(self) -> None:
        """Puts what moved within the task in its place."""
        parts, state = self._parts, self._pending
        assert state is not None
        weights.write(weights.moving(self._network), state["weights"])
        weights.write_optimizer(parts.strategy.optimizer, state["optimizer"])
        take_up_all(parts.strategy, state["courses"])
        self._network.adapter.take_up(state["adapter_course"])
        parts.monitor.restore(state["monitor"])
        parts.plugin.step = state["adapter_step"]
        parts.strategy._stop_training = state["stopped"]
        randomness.restore(state["random"], parts.strategy.lane.generator)
        self._pending = None
        parts.recorder.silence(False, state["epoch"] * parts.strategy.epoch_batches + state["step"])

    # ------------------------------------------------------------------------------------------- keeping

    def task_begins(self) -> None:
        """Told before a phase: from here it begins again, should it be interrupted."""
        if self._pending is None:
            self._task = {"start": randomness.states(self._parts.strategy.lane.generator), "seconds": time.monotonic()}
        else:
            self._task = {"start": self._pending["start"], "seconds": time.monotonic() - self._pending["task_seconds"]}

    @property
    def task_seconds(self) -> float:
        """Seconds that the present phase has taken, in all attempts."""
        return float(time.monotonic() - self._task["seconds"])

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, in all attempts."""
        return self._parts.seconds + time.monotonic() - self._began

    def stepped(self, strategy: Any) -> None:
        """Counts a step, and keeps the run where it is time, or where it is to end."""
        self.step += 1
        minutes = self._interval.minutes
        due = minutes is not None and time.monotonic() - self._written >= 60 * minutes
        if due or self.stop.requested is not None:
            self.keep_step(strategy.clock.train_exp_epochs, self.step)
            self.stop.end_if_requested()

    def epoch_ended(self, strategy: Any) -> None:
        """Keeps the run where so many epochs have passed, or where it is to end."""
        epoch, every = strategy.clock.train_exp_epochs, self._interval.epochs
        if (every is not None and epoch % every == 0) or self.stop.requested is not None:
            self.keep_step(epoch, 0)
            self.stop.end_if_requested()

    def run_begins(self) -> None:
        """Keeps the run as it is before its first task."""
        self._keep_between(0)

    def phase_trained(self, done: int) -> None:
        """Keeps the run after a phase, which is still to be evaluated."""
        self._parts.epochs.append(self._parts.monitor.epoch)
        self._keep_between(done)

    def phase_evaluated(self, done: int) -> None:
        """Keeps what the evaluation gave, on top of the checkpoint before it."""
        if self._base is not None:
            state = self._common(done) | {"evaluated": True, "monitor": self._parts.monitor.totals_so_far()}
            self._write(f"after task {self._count(done)}, evaluated", state, Packer(), base=self._base)

    def _keep_between(self, done: int) -> None:
        parts, strategy = self._parts, self._parts.strategy
        if self._checkpoints is None:
            return
        try:
            remembered = memories(strategy, parts.samples)
        except CannotBeKept as reason:
            self._checkpoints = None
            parts.recorder.warning(f"no checkpoints: {reason}; a run that is interrupted starts over")
            return
        state = self._common(done) | {
            "evaluated": done == 0,
            "facts": parts.facts,
            "epochs": parts.epochs,
            "phases": parts.tasks(done),
            "network": weights.everything(self._network),
            "adapter": self._network.adapter.memory(),
            "strategy": remembered,
            "optimizer": None if strategy.reset_optimizer else self._held(),
            "monitor": parts.monitor.totals_so_far(),
        }
        where = f"after task {self._count(done)}" if done else "before the first task"
        self._base = self._write(where, state, Packer(self._initial), base=None)

    def keep_step(self, epoch: int, step: int) -> None:
        """Keeps the run within a task, after an epoch or, where ``step`` is not 0, after a step of the next one."""
        parts, strategy = self._parts, self._parts.strategy
        if self._base is None:
            return
        strategy.guard.look(strategy)
        parts.monitor.tell_losses()
        done = len(parts.epochs)
        state = self._common(done) | {
            "evaluated": True,
            "epoch": epoch,
            "step": step,
            "start": self._task["start"],
            "order": self._task.get("order"),
            "task_seconds": self.task_seconds,
            "weights": weights.moving(self._network),
            "optimizer": weights.optimizer_state(strategy.optimizer),
            "courses": courses(strategy),
            "adapter_course": self._network.adapter.course(),
            "monitor": parts.monitor.saved(in_epoch=step > 0),
            "adapter_step": parts.plugin.step,
            "stopped": bool(strategy._stop_training),
        }
        place = f"epoch {epoch + 1}, step {step}" if step else f"after epoch {epoch}"
        where = f"in task {self._count(done) + 1}, {place}"
        self._write(where, state, Packer(), base=self._base)

    def _common(self, done: int) -> State:
        parts = self._parts
        return {
            "done": done,
            "active": self._network.active,
            "random": randomness.states(parts.strategy.lane.generator),
            "recorder": parts.recorder.saved(),
            "skipped": parts.strategy.guard.skipped,
            "seconds": self.seconds,
        }

    def _write(self, where: str, state: State, packer: Packer, *, base: int | None) -> int:
        assert self._checkpoints is not None
        started = time.monotonic()
        plain = packer.pack(state)
        stored = packer.tensors()
        tensors = save(stored) if stored else None
        events = self._parts.recorder.settled()
        self.last = self._checkpoints.write(where, plain, tensors, events=events, base=base)
        self._written = time.monotonic()
        self.seconds_writing += self._written - started
        return self.last

    def _read(self, checkpoint: Checkpoint) -> State:
        return read_state(checkpoint, self._first_weights.__getitem__, self._parts.strategy.lane.store.device)

    def _held(self) -> State | None:
        """The optimiser that the next task goes on with, and the names of its parameters; None where some are gone."""
        names = {id(item): name for name, item in self._network.named_parameters()}
        held = [item for group in self._parts.strategy.optimizer.param_groups for item in group["params"]]
        if any(id(item) not in names for item in held):
            return None
        state = weights.optimizer_state(self._parts.strategy.optimizer)
        return {"names": [names[id(item)] for item in held], "state": state}

    def _hold(self, kept: State | None) -> None:
        if kept is not None:
            named, strategy = dict(self._network.named_parameters()), self._parts.strategy
            strategy.optimizer = strategy.optimizer_factory([named[name] for name in kept["names"]])
            weights.write_optimizer(strategy.optimizer, kept["state"])

    def _count(self, done: int) -> int:
        """The number of tasks in the first phases."""
        return sum(map(len, self._parts.phases[:done]))


def _same(then: State, now: State) -> None:
    """Raises RequestError where something that matters has changed."""
    for name, value in now.items():
        if name in then and then[name] != value:
            raise RequestError(
                f"resume: {name} is not what it was when the run began",
                "put it back, or start a new run without resume",
            )
