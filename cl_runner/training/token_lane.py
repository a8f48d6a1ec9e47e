"""The lane of language models: batches of token ids, padded to the longest text of each batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from cl_runner.training.lane import Batch, Lane, LaneLoader


class TokenLane(Lane):
    """Makes loaders over a store of texts.

    A batch is what `Store.batch` gives: ids and marks (B, 2, L), targets (B, L), and the task labels on the host.

    Args:
        store: the texts.
        generator: draws their order.
    """

    def __init__(self, store: Any, generator: torch.Generator) -> None:
        self.store = store
        self.generator = generator
        self.channels_last = False
        self.served = None

    def adopt(self, loader: Any, iterations: int | None = None) -> Iterable[Batch]:
        """Serves the batches that an Avalanche loader would; all samples are in the store."""
        adopted = super().adopt(loader, iterations)
        assert isinstance(adopted, LaneLoader), "no method for texts brings samples of its own"
        return adopted

    def chunks(self, batches: Iterable[Tensor], augmented: bool) -> Iterator[Batch]:
        """Turns batches of ids into batches of texts."""
        for ids in batches:
            self.served = ids
            yield [*self.store.batch(ids), self.store.tasks.index_select(0, ids)]
