"""A loss that is no finite number: found before anything learns from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

STOP, SKIP = "stop", "skip"
LOOK_EVERY = 50  # steps, on a device that should not be waited for
SHOWN = 12  # samples of a batch that a message names


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


class Guard:
    """Looks at the loss of every step.

    On the CPU, and wherever steps are to be skipped, each loss is read before the backward pass. On a GPU that would
    wait for the device at every step: there the losses stay where they are, and are read every 50 steps, at the end of
    an epoch, and before anything is kept.

    Args:
        on_nan: stop (with an error), or skip: the step teaches nothing and is counted.

    Attributes:
        skipped: steps that were skipped.
        told: called with (task, epoch, step, samples) of every one; tasks, epochs and steps count from 1.
    """

    def __init__(self, on_nan: str = STOP) -> None:
        self.on_nan = on_nan
        self.skipped = 0
        self.told: Callable[[int, int, int, list[int]], None] = _nobody
        self._judged: list[tuple[Tensor, int, int, Any]] = []
        self._where: tuple[int, int] | None = None
        self._statistics: list[Tensor] = []
        self._before: list[Tensor] = []

    @torch.no_grad()
    def before_step(self, strategy: Any) -> None:
        """Keeps the running statistics, which a forward pass over bad values would spoil."""
        if self.on_nan != SKIP:
            return
        where = (strategy.experience.current_experience, strategy.clock.train_exp_epochs)
        if where != self._where:  # looking for them takes longer than copying them
            self._where, self._statistics = where, list(_statistics(strategy.model))
            self._before = [item.clone() for item in self._statistics]
        elif self._before:
            torch._foreach_copy_(self._before, self._statistics)

    def accepts(self, strategy: Any) -> bool:
        """Whether to learn from this step.

        Raises:
            DivergedError: the loss is no finite number, and `on_nan` is stop.
        """
        loss: Tensor = strategy.loss.detach()
        if self.on_nan == STOP and _is_far(loss):
            self._judged.append((loss, *_now(strategy)))
            if len(self._judged) >= LOOK_EVERY:
                self.look(strategy)
            return True
        value = float(loss)
        if math.isfinite(value):
            return True
        epoch, step, _ = _now(strategy)
        if self.on_nan == STOP:
            raise _error(strategy, str(value), epoch, step, strategy.lane.served)
        if self._before:
            with torch.no_grad():
                torch._foreach_copy_(self._statistics, self._before)
        self.skipped += 1
        self.told(strategy.experience.current_experience + 1, epoch, step, _samples(strategy.lane.served))
        return False

    def look(self, strategy: Any) -> None:
        """Reads what was judged on the device since the last look.

        Raises:
            DivergedError: some loss was no finite number.
        """
        if not self._judged:
            return
        finite = torch.isfinite(torch.cat([loss.reshape(1) for loss, *_ in self._judged])).tolist()
        found, self._judged = self._judged, []
        if not all(finite):
            _, epoch, step, served = found[finite.index(False)]
            raise _error(strategy, "no finite number", epoch, step, served)


def _is_far(loss: Tensor) -> bool:
    """Whether reading a value means waiting for a device."""
    return loss.device.type != "cpu"


def _now(strategy: Any) -> tuple[int, int, Tensor | None]:
    """The epoch and the step, from 1, and the samples of the batch."""
    return strategy.clock.train_exp_epochs + 1, strategy.keeper.step + 1, strategy.lane.served


def _error(strategy: Any, value: str, epoch: int, step: int, served: Tensor | None) -> DivergedError:
    samples = _samples(served)
    words = ", ".join(map(str, samples[:SHOWN])) + (f", ... {len(samples)} in all" if len(samples) > SHOWN else "")
    batch = f" (samples {words})" if samples else ""
    task = strategy.experience.current_experience + 1
    return DivergedError(
        f"the loss of task {task} is {value} at step {step} of epoch {epoch}{batch}; try a lower optimizer.lr, or "
        "on_nan=skip"
    )


def _samples(served: Tensor | None) -> list[int]:
    return [] if served is None else served.tolist()


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, _NormBase):
            yield from module.buffers(recurse=False)


def _nobody(task: int, epoch: int, step: int, samples: list[int]) -> None:
    """Nobody is told."""
