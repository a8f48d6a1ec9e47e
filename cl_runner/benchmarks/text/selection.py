"""Which texts of a file a part takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WHOLE, REST, TENTH = "whole", "rest", "tenth"


@dataclass(frozen=True)
class Selection:
    """A choice that depends on the seed and the number of texts only.

    Attributes:
        most: texts to take; None: all, in the file's order. Else the first of `default_rng(seed).permutation`, which
            is the choice of `dataset.shuffle(seed).select(range(most))` in the datasets library.
        seed: `benchmark.split_seed`.
        share: the whole file; where one file gives both parts, a drawn tenth for the test, the rest for training.
    """

    most: int | None
    seed: int
    share: str = WHOLE

    def choose(self, count: int) -> np.ndarray:
        """Positions in a file of ``count`` texts, int64."""
        pool = self._pool(count)
        return pool if self.most is None else pool[np.random.default_rng(self.seed).permutation(len(pool))[: self.most]]

    def _pool(self, count: int) -> np.ndarray:
        if self.share == WHOLE:
            return np.arange(count)
        drawn = np.random.default_rng([self.seed, 1]).permutation(count)
        tenth = share_of(0.1, count)
        return np.sort(drawn[:tenth] if self.share == TENTH else drawn[tenth:])


def share_of(fraction: float, count: int) -> int:
    """A fraction of a number of texts: rounded, at least one, never all."""
    return min(max(round(fraction * count), 1), max(count - 1, 0))


def held_out(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits ``count`` texts into those that train and those that validate, both in their order; no text is in both."""
    if not fraction:
        return np.arange(count), np.arange(0)
    drawn = np.random.default_rng([seed, 2]).permutation(count)
    most = share_of(fraction, count)
    return np.sort(drawn[most:]), np.sort(drawn[:most])
