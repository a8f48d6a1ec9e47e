"""Learning-rate schedules over one task; torch's own schedulers do the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, ReduceLROnPlateau

PLAIN = (bool, int, float, str, list)


class Constant:
    """The learning rate stays as it is."""

    _scheduler: Any = None
    _left: int | None = None

    def begin(self, optimizer: Optimizer, steps: int) -> None:
        """Starts over for a task of ``steps`` optimiser steps, from the optimiser's first learning rate."""
        for group in optimizer.param_groups:  # one that is carried over from the task before stands at its last
            group["lr"] = group.setdefault("initial_lr", group["lr"])

    def after_step(self) -> None:
        """Called after every optimiser step."""

    def after_epoch(self, validation_loss: float | None) -> None:
        """Called after every epoch with the validation loss, None where nothing was validated."""

    def saved(self) -> dict[str, Any]:
        """Where the schedule stands in its task; the learning rates themselves are the optimiser's."""
        state = {} if self._scheduler is None else self._scheduler.state_dict()
        kept = {name: value for name, value in state.items() if value is None or isinstance(value, PLAIN)}
        return {"scheduler": kept, "left": self._left}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from there, in a task that has begun."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        self._left = state["left"]


class Cosine(Constant):
    """lr_t = min_lr + (lr - min_lr) (1 + cos(pi t / steps)) / 2, step by step over the task."""

    def __init__(self, *, min_lr: float = 0.0) -> None:
        self.min_lr = min_lr

    def begin(self, optimizer: Optimizer, steps: int) -> None:
        """Starts over for a task of ``steps`` optimiser steps."""
        super().begin(optimizer, steps)
        self._scheduler = CosineAnnealingLR(optimizer, max(steps, 1), eta_min=self.min_lr)
        self._left = steps

    def after_step(self) -> None:
        """Follows the curve; stays at its end."""
        if self._left:
            self._scheduler.step()
            self._left -= 1


class MultiStep(Constant):
    """lr times gamma at each milestone, counted in epochs of the task."""

    def __init__(self, *, milestones: Sequence[int] = (10, 15), gamma: float = 0.1) -> None:
        self.milestones, self.gamma = list(milestones), gamma

    def begin(self, optimizer: Optimizer, steps: int) -> None:
        """Starts over for a task."""
        super().begin(optimizer, steps)
        self._scheduler = MultiStepLR(optimizer, self.milestones, self.gamma)

    def after_epoch(self, validation_loss: float | None) -> None:
        """Counts the epoch."""
        self._scheduler.step()


class Plateau(Constant):
    """lr times factor when the validation loss has not fallen for more than ``patience`` epochs."""

    def __init__(self, *, factor: float = 0.1, patience: int = 4, min_lr: float = 0.0) -> None:
        self.factor, self.patience, self.min_lr = factor, patience, min_lr

    def begin(self, optimizer: Optimizer, steps: int) -> None:
        """Starts over for a task."""
        super().begin(optimizer, steps)
        self._scheduler = ReduceLROnPlateau(optimizer, factor=self.factor, patience=self.patience, min_lr=self.min_lr)

    def after_epoch(self, validation_loss: float | None) -> None:
        """Looks at the validation loss."""
        if validation_loss is not None:
            self._scheduler.step(validation_loss)
