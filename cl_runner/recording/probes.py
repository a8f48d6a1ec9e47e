"""Accuracy on the probe domains of a run: never trained, outside the accuracy matrix and every metric made of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence


class Probes:
    """What a run measured on its probe domains, after 0 (before any training) to T tasks.

    Args:
        domains: their names, in the order of the columns of ``probes.csv``.
        n_tasks: T, the length of the stream.
    """

    def __init__(self, domains: Sequence[str] = (), n_tasks: int = 0) -> None:
        self.domains = tuple(domains)
        self._n_tasks = n_tasks
        self.cells: dict[tuple[int, str], float] = {}

    def add(self, after_task: int, accuracies: Mapping[str, float | None]) -> dict[str, float]:
        """Takes the accuracies in [0, 1] by domain; NaN, None and domains that are left out were not evaluated.

        Returns:
            Those that were evaluated, in the order of the domains.

        Raises:
            ValueError: a domain that was not announced, a row outside the stream, or no accuracy.
        """
        unknown = [name for name in accuracies if name not in self.domains]
        if unknown:
            raise ValueError(f"probe domain {unknown[0]!r} was not announced, only {list(self.domains)} were")
        if not 0 <= after_task <= self._n_tasks:
            raise ValueError(f"after task {after_task}: the stream has {self._n_tasks} tasks")
        given = {name: accuracies.get(name) for name in self.domains}
        known = {name: float(value) for name, value in given.items() if value is not None and not math.isnan(value)}
        wrong = [value for value in known.values() if not 0.0 <= value <= 1.0]
        if wrong:
            raise ValueError(f"probe accuracies are in [0, 1] or NaN, found {wrong[0]}")
        self.cells |= {(after_task, name): value for name, value in known.items()}
        return known

    def row(self, after_task: int) -> list[float | None]:
        """Returns the accuracy on each domain after so many tasks; None = not evaluated."""
        return [self.cells.get((after_task, name)) for name in self.domains]

    def rows(self) -> list[list[float | None]]:
        """Returns the T + 1 rows of ``probes.csv``."""
        return [self.row(after) for after in range(self._n_tasks + 1)]

    def before_and_after(self) -> list[tuple[str, float | None, float | None]]:
        """Returns each domain with its accuracy before any training and after the last task."""
        return list(zip(self.domains, self.row(0), self.row(self._n_tasks), strict=True))

    def mean(self, after_task: int) -> float | None:
        """Returns the mean over the domains; None where one was not evaluated: a mean over others is another figure."""
        row = self.row(after_task)
        known = [value for value in row if value is not None]
        return statistics.fmean(known) if known and len(known) == len(row) else None

    def retention(self) -> float | None:
        """Returns the mean over the domains of accuracy after the last task / accuracy before any training.

        None where there are no domains, one was not evaluated at either time, or one was at 0 before.
        """
        shares = [after / before for _, before, after in self.before_and_after() if before and after is not None]
        return statistics.fmean(shares) if shares and len(shares) == len(self.domains) else None
