"""Image features that are computed once, for as long as nothing changes the tower that they come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cl_runner.backbones.clip import CLIPClassifier
from cl_runner.backbones.network import Network
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.training.lane import Batch, Lane, ShuffledBatches


class FeatureBank:
    """The image features of a CLIP network, by sample, in the place of images.

    Test images are the same after every task: where the vision tower has not changed since (zero-shot, regression on
    frozen features, adapters on the text tower), their features are the same too. The tower is watched through the
    version counters of its tensors, so that any change at all empties the bank. Where images are not augmented and
    nothing in the tower trains, training too reads features instead of images.

    Features are those that the network would compute, so that results do not change. N samples of d numbers take
    4 N d bytes on the device.
    """

    def __init__(self, network: Network, lane: Lane) -> None:
        assert isinstance(network.backbone, CLIPClassifier)
        self.network, self.backbone, self.lane = network, network.backbone, lane
        self._signature: tuple[Any, ...] | None = None
        self._table: Tensor | None = None
        self._known = torch.zeros(len(lane.store), dtype=torch.bool)
        self.computed = 0

    @staticmethod
    def of(network: TaskNetwork, lane: Lane) -> FeatureBank | None:
        """A bank, where images have one feature vector whatever their task."""
        if not isinstance(network, Network) or not network.prompted or network.per_task:
            return None
        return FeatureBank(network, lane)

    def evaluation(self, ids: Tensor, batch_size: int) -> FeatureLoader:
        """Batches of features in order."""
        return FeatureLoader(self, list(ids.split(batch_size)), batch_size)

    def training(self, ids: Tensor, batch_size: int, iterations: int | None = None) -> FeatureLoader | None:
        """Shuffled batches of features; None where the images themselves are needed."""
        if self.lane.augmentation.active or any(item.requires_grad for item in self.backbone.visual.parameters()):
            return None
        batches = ShuffledBatches(ids, batch_size, self.lane.augmentation.generator)
        self._known[ids] = False  # a batch of another size may give other last bits: all are of this task's batches
        return FeatureLoader(self, batches, batch_size, iterations)

    def features(self, ids: Tensor, batch_size: int) -> Tensor:
        """The features (n, d) of samples, computing those that are not known."""
        self._refresh()
        missing = ids[~self._known[ids]]
        if len(missing):
            training = self.network.training
            self.network.eval()
            with torch.no_grad():
                for images, _, _ in self.lane.evaluation(missing, batch_size):
                    self._keep(missing[: len(images)], self.network.features(images))
                    missing = missing[len(images) :]
            self.network.train(training)
        assert self._table is not None
        return self._table[ids.to(self._table.device)]

    def _keep(self, ids: Tensor, features: Tensor) -> None:
        if self._table is None:
            self._table = features.new_empty(len(self._known), features.shape[1])
        self._table[ids.to(self._table.device)] = features
        self._known[ids] = True
        self.computed += len(ids)

    def _refresh(self) -> None:
        """Empties the bank where some tensor of the vision tower has been written since."""
        state = tuple((id(item), item._version) for item in self.backbone.vision_parameters())
        signature = (self.network.changes, *state)
        if signature != self._signature:
            self._signature = signature
            self._known.zero_()


class FeatureLoader:
    """A loader over batches of ids that gives features where a lane's gives images."""

    def __init__(self, bank: FeatureBank, batches: Any, batch_size: int, iterations: int | None = None) -> None:
        self.bank, self.batches, self.batch_size, self.iterations = bank, batches, batch_size, iterations

    def __len__(self) -> int:
        return self.iterations if self.iterations is not None else len(self.batches)

    def compute(self) -> None:
        """Computes the features of an epoch, in the batches that its first one has from here."""
        for ids in self.batches:
            self.bank.features(ids, self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        store, done = self.bank.lane.store, 0
        while True:
            for ids in self.batches:
                if self.iterations is not None and done == self.iterations:
                    return
                features = self.bank.features(ids, self.batch_size)
                labels = store.labels.index_select(0, ids.to(store.device, non_blocking=True))
                yield [features, labels, store.tasks.index_select(0, ids)]
                done += 1
            if self.iterations is None:
                return
