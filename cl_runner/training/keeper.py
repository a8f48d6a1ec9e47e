"""What a strategy tells of its steps, so that they can be kept: the contract, and keeping nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class KeepsNothing:
    """Every task starts at its first step, and nothing is written.

    Attributes:
        step: steps done in the present epoch.
    """

    step = 0

    def first_epoch(self, strategy: Any) -> int:
        """The epoch, from 0, with which the present task goes on; its parameters are open by then."""
        return 0

    def batches(self, strategy: Any) -> Iterable[Any]:
        """The batches of the present epoch that are still to come."""
        self.step = 0
        batches: Iterable[Any] = strategy.dataloader
        return batches

    def stepped(self, strategy: Any) -> None:
        """A step is done, with everything that belongs to it."""
        self.step += 1

    def epoch_ended(self, strategy: Any) -> None:
        """An epoch is done, with everything that belongs to it."""
