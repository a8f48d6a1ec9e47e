"""The lane of language models: batches of token ids, padded to the longest text of each batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from cl_runner.benchmarks.store import Store
from cl_runner.training.lane import Batch, Lane, LaneLoader


class TokenLane(Lane):
    """Makes loaders over a store of texts.

    A batch is what `Store.batch` gives: ids and marks (B, 2, L), targets (B, L), and the task labels on the host.

    Args:
        store: the texts.
        generator: draws their order.
    """

    def __init__(self, store: Store, generator: torch.Generator) -> None:
        self.texts = store
        self._generator = generator
        self.channels_last = False

    @property
    def store(self) -> Any:  # type: ignore[override]
        """The texts."""
        return self.texts

    @property
    def generator(self) -> torch.Generator:
        """Draws the order of the data."""
        return self._generator

    def adopt(self, loader: Any, iterations: int | None = None) -> Iterable[Batch]:
        """Serves the batches that an Avalanche loader would; all samples are in the store."""
        adopted = super().adopt(loader, iterations)
        assert isinstance(adopted, LaneLoader), "no method for texts brings samples of its own"
        return adopted

    def chunks(self, batches: Iterable[Tensor], augmented: bool) -> Iterator[Batch]:
        """Turns batches of ids into batches of texts."""
        for ids in batches:
            yield [*self.texts.batch(ids), self.texts.tasks.index_select(0, ids)]
