"""Iterators over random batches whose draws depend on nothing but a seed, so that one can be taken up again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch


def seed_of(generator: torch.Generator) -> int:
    """A seed, drawn from a generator."""
    return int(torch.randint(2**62, (), generator=generator))


def apart(source: Callable[[], Iterable[Any]], seed: int) -> Iterator[Any]:
    """Iterates over ``source()`` with torch's own generator replaced, whenever it draws, by one that starts at a seed.

    Loaders of torch and Avalanche draw their samples from torch's one generator at whatever moment they are asked for a
    batch, in between dropout and everything else that draws from it. So what they give is a matter of the seed alone.
    """
    own = torch.Generator().manual_seed(seed).get_state()
    items: Iterator[Any] | None = None
    while True:
        outside = torch.get_rng_state()
        torch.set_rng_state(own)
        try:
            if items is None:
                items = iter(source())
            item = next(items)
        except StopIteration:
            return
        finally:
            own = torch.get_rng_state()
            torch.set_rng_state(outside)
        yield item


class Draws:
    """Batches from a source with draws of its own, counted.

    Args:
        source: makes what is iterated over.
        generator: gives the seed.

    Attributes:
        taken: batches that were given.
    """

    def __init__(self, source: Callable[[], Iterable[Any]], generator: torch.Generator) -> None:
        self.taken = 0
        self._items = apart(source, seed_of(generator))

    def __iter__(self) -> Draws:
        return self

    def __next__(self) -> Any:
        item = next(self._items)
        self.taken += 1
        return item

    def skip_to(self, taken: int) -> None:
        """Goes on to where so many batches have been given."""
        while self.taken < taken:
            next(self)
