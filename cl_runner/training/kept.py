"""Features that are kept: in a table by sample, or batch by batch; and the loader that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from cl_runner.backbones.network import Network
from cl_runner.backbones.prefix import Cut
from cl_runner.training.lane import CHUNK, Batch, Lane, LaneLoader, of_one

if TYPE_CHECKING:
    from cl_runner.training.features import FeatureBank


class Kept(Protocol):
    """Features that are kept for a purpose.

    Attributes:
        cut: where they come from.
        nbytes: what they take on the device.
    """

    cut: Cut
    nbytes: int

    def ready(self) -> bool:
        """Brings what is kept up to date; false where images are needed after all."""
        ...

    def take(self, ids: Tensor) -> Tensor:
        """The features of a batch, as the network takes them."""
        ...


class Table:
    """The features of a task's training samples, computed before the first step, whatever step that is.

    Args:
        bank: whose room they take.
        cut: where they come from.
        ids: of the samples.
        batch_size: of training.
    """

    def __init__(self, bank: FeatureBank, cut: Cut, ids: Tensor, batch_size: int) -> None:
        self.bank, self.cut, self.ids, self.batch_size = bank, cut, ids, min(batch_size, len(ids))
        probe = self._run(ids[:2])
        self._last = is_channels_last(probe)
        self._shape = _flat(probe, self._last).shape[1:]
        self._kind = probe.dtype
        size = probe[0].numel() * probe.element_size()
        self.capacity = max(0, min(len(ids), bank.make_room(size * len(ids)) // size))
        self.nbytes = self.capacity * size
        self._rows: Tensor | None = None
        self._places = torch.full((len(bank.lane.store),), -1, dtype=torch.int64)
        self._places[ids[: self.capacity]] = torch.arange(self.capacity)
        self._signature: tuple[Any, ...] | None = None

    def ready(self) -> bool:
        """Computes the features where they are not known, or no longer; false where the prefix has begun to move."""
        if not self.cut.is_still():
            return False
        if self._signature != self.cut.signature():
            self._fill()
            self._signature = self.cut.signature()
        return True

    def take(self, ids: Tensor) -> Tensor:
        """Features (B, ...): those that are kept, the others computed."""
        assert self._rows is not None
        places = self._places[ids]
        known = self._rows.index_select(0, places.clamp(min=0).to(self._rows.device, non_blocking=True))
        if self.capacity < len(self.ids):
            missing = torch.nonzero(places < 0).flatten()
            if len(missing):
                known[missing.to(known.device)] = _flat(self._run(ids[missing]), self._last)
        return self.cut.mark(known.movedim(-1, 1) if self._last else known)

    def _fill(self) -> None:
        device = self.bank.network.anchor.device
        if self._rows is None:
            self._rows = torch.empty((self.capacity, *self._shape), dtype=self._kind, device=device)
        for start in range(0, self.capacity, self.batch_size):
            ids = self.ids[start : start + self.batch_size]
            padding = self.ids[: self.batch_size - len(ids)]
            features = _flat(self._run(torch.cat([ids, padding])), self._last)
            end = min(start + len(ids), self.capacity)
            self._rows[start:end] = features[: end - start]
        self.bank.computed += self.capacity

    def _run(self, ids: Tensor) -> Tensor:
        """The prefix in the mode of training; with gradients enabled it takes the same kernels as there."""
        images = self.bank.images(ids)
        with _mode(self.bank.network, True), torch.enable_grad():
            return self.cut.run(images).detach()


class Batches:
    """The features of batches that come again as they were, in evaluation mode.

    A batch is kept as a whole or not at all, so that what is kept never decides what shares a batch.

    Args:
        bank: whose room they take.
        cut: where they come from.
    """

    def __init__(self, bank: FeatureBank, cut: Cut) -> None:
        self.bank, self.cut, self.nbytes = bank, cut, 0
        self._known: dict[bytes, Tensor] = {}
        self._signature: tuple[Any, ...] | None = None

    def ready(self) -> bool:
        """Forgets what a prefix gave that has changed since."""
        signature = self.cut.signature()
        if signature != self._signature:
            self._signature, self.nbytes = signature, 0
            self._known.clear()
        return True

    def take(self, ids: Tensor) -> Tensor:
        """Features (B, ...) of a batch, a copy of their own: what comes next may write into them."""
        key = ids.numpy().tobytes()
        features = self._known.get(key)
        if features is None:
            with _mode(self.bank.network, False), torch.inference_mode(False), torch.no_grad():
                features = self.cut.run(self.bank.images(ids))
            if self.bank.room >= features.nbytes:
                self._known[key] = features
                self.nbytes += features.nbytes
                self.bank.computed += len(ids)
        return self.cut.mark(features.clone())


class FeatureLoader(LaneLoader):
    """A lane's loader that gives features where they are kept in the place of images.

    Args:
        lane: whose batches.
        batches: of ids.
        kept: the features.
        iterations: batches in all, where they are counted.
    """

    def __init__(self, lane: Lane, batches: Any, kept: Kept, iterations: int | None = None) -> None:
        super().__init__(lane, batches, False, iterations)
        self.kept = kept

    def __iter__(self) -> Iterator[Batch]:
        if not self.kept.ready():
            yield from super().__iter__()
            return
        waiting: list[Tensor] = []
        for ids in self.ids():
            waiting.append(ids)
            if sum(map(len, waiting)) >= CHUNK:
                yield from self._serve(waiting)
                waiting = []
        if waiting:
            yield from self._serve(waiting)

    def _serve(self, batches: list[Tensor]) -> Iterator[Batch]:
        store, together = self.lane.store, torch.cat(batches)
        labels = store.labels.index_select(0, together.to(store.device, non_blocking=True))
        tasks = of_one(store.tasks.index_select(0, together))
        start = 0
        for ids in batches:
            end = start + len(ids)
            features = self.kept.take(ids)
            self.lane.served = ids
            yield [features, labels[start:end], tasks[start:end]]
            start = end


class _mode(AbstractContextManager[None]):  # noqa: N801, reads as the verb it is
    """Within, a network is in training or in evaluation mode."""

    def __init__(self, network: Network, training: bool) -> None:
        self.network, self.wanted, self.found = network, training, network.training

    def __enter__(self) -> None:
        if self.found != self.wanted:
            self.network.train(self.wanted)

    def __exit__(self, *error: object) -> None:
        if self.found != self.wanted:
            self.network.train(self.found)


def is_channels_last(x: Tensor) -> bool:
    """Whether images or feature maps (B, C, H, W) lie in memory with their channels last."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _flat(x: Tensor, last: bool) -> Tensor:
    """Features in the order in which they lie in memory."""
    return x.movedim(1, -1) if last else x
