"""The training lane: batches are index selections from images that live on the device.

Avalanche asks a strategy for a data loader; these are the loaders it gets. Nothing here runs per sample: ids are
drawn for an epoch, a chunk of them is fetched and augmented as uint8, and each batch is a slice of the chunk turned
into normalised floats. Nothing waits for the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from torch import Tensor

from cl_runner.benchmarks.avalanche_view import sample_ids
from cl_runner.benchmarks.store import ImageStore
from cl_runner.training.augment import Augmentation
from cl_runner.training.draws import apart, seed_of

CHUNK = 2048  # samples fetched and augmented together: large enough to amortise, small enough for the cache

Batch = list[Tensor]  # images on the device, labels on the device, task labels on the host


class Lane:
    """Makes loaders over one store.

    Args:
        store: the images.
        augmentation: drawn for every training sample; its generator also draws the order of the data.
        channels_last: give images in channels-last memory format.

    Attributes:
        generator: draws the order of the data.
        served: ids of the samples in the last batch, on the host.
    """

    def __init__(self, store: ImageStore, augmentation: Augmentation, channels_last: bool = False) -> None:
        self.store = store
        self.augmentation = augmentation
        self.channels_last = channels_last
        self.generator = augmentation.generator
        self.served: Tensor | None = None

    def training(self, ids: Tensor, batch_size: int, iterations: int | None = None) -> LaneLoader:
        """Shuffled, augmented batches over the samples ``ids``; endless epochs cut at ``iterations`` where given."""
        return LaneLoader(self, ShuffledBatches(ids, batch_size, self.generator), True, iterations)

    def evaluation(self, ids: Tensor, batch_size: int) -> LaneLoader:
        """Batches in order, not augmented."""
        return LaneLoader(self, list(ids.split(batch_size)), False)

    def adopt(self, loader: Any, iterations: int | None = None) -> Iterable[Batch]:
        """Serves the batches that an Avalanche loader would, from the store.

        The choice of samples stays Avalanche's own; only fetching and collating are replaced. A loader over samples
        that are not in the store (iCaRL's exemplars) keeps its own fetching and gets the lane's augmentation.
        """
        if isinstance(loader, (LaneLoader, CollatedLoader)):
            return loader
        if isinstance(loader, MultiDatasetDataLoader):
            ids = [sample_ids(dataset) for dataset in loader.datasets]
            if all(item is not None for item in ids):
                batches = AvalancheBatches(loader, torch.cat(ids), self.generator)  # type: ignore[arg-type]
                return LaneLoader(self, batches, True, iterations)
        return CollatedLoader(self, loader, iterations)

    def chunks(self, batches: Iterable[Tensor], augmented: bool) -> Iterator[Batch]:
        """Turns batches of ids into batches of images."""
        waiting: list[Tensor] = []
        count = 0
        for ids in batches:
            waiting.append(ids)
            count += len(ids)
            if count >= CHUNK:
                yield from self._serve(waiting, augmented)
                waiting, count = [], 0
        if waiting:
            yield from self._serve(waiting, augmented)

    def _serve(self, batches: list[Tensor], augmented: bool) -> Iterator[Batch]:
        store = self.store
        ids = torch.cat(batches)
        places: Tensor | None = None
        if augmented:
            images, places = self.augmentation.chunk(store.images_NCHW, ids)
        else:
            images = store.images_NCHW.index_select(0, ids.to(store.images_NCHW.device, non_blocking=True))
        if images.device != store.device:
            images = images.pin_memory().to(store.device, non_blocking=True)
            places = None if places is None else places.to(store.device, non_blocking=True)
        labels = store.labels.index_select(0, ids.to(store.device, non_blocking=True))
        tasks = of_one(store.tasks.index_select(0, ids))
        start = 0
        for batch in batches:
            end = start + len(batch)
            self.served = batch
            part = images[start:end] if places is None else images.index_select(0, places[start:end])
            yield [self.prepare(part), labels[start:end], tasks[start:end]]
            start = end

    def prepare(self, images_NCHW: Tensor) -> Tensor:
        """uint8 images to what the network sees."""
        x_NCHW = self.store.normalise(images_NCHW)
        return channels_last(x_NCHW) if self.channels_last else x_NCHW


def channels_last(x_NCHW: Tensor) -> Tensor:
    """The same values, channels last in memory; of a single channel the strides alone say so, and layers go by them."""
    n, channels, height, width = x_NCHW.shape
    if channels == 1:
        return x_NCHW.contiguous().view(n, height, width, 1).permute(0, 3, 1, 2)
    return x_NCHW.contiguous(memory_format=torch.channels_last)


def of_one(tasks: Tensor) -> Tensor:
    """The task labels (n,) of a batch; where they are all the same one number, seen n times: a stride of 0 says so."""
    if len(tasks) and bool((tasks == tasks[0]).all()):
        return tasks[:1].expand(len(tasks))
    return tasks


class LaneLoader:
    """A loader over batches of ids, with the length Avalanche's loaders have."""

    def __init__(self, lane: Lane, batches: Any, augmented: bool, iterations: int | None = None) -> None:
        self.lane, self.batches, self.augmented, self.iterations = lane, batches, augmented, iterations

    def __len__(self) -> int:
        return self.iterations if self.iterations is not None else len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return self.lane.chunks(self.ids(), self.augmented)

    def ids(self) -> Iterable[Tensor]:
        """The ids of the batches to come; endless epochs cut at ``iterations`` where given."""
        if self.iterations is None:
            return self.batches  # type: ignore[no-any-return]
        endless = itertools.chain.from_iterable(itertools.repeat(self.batches))
        return itertools.islice(endless, self.iterations)


class ShuffledBatches:
    """A fresh permutation of the ids at every iteration, cut into batches; the last one may be smaller.

    A single sample left over joins the batch before it: BatchNorm has no variance of one value.
    """

    def __init__(self, ids: Tensor, batch_size: int, generator: torch.Generator) -> None:
        self.ids, self.batch_size, self.generator = ids, batch_size, generator

        sizes = [batch_size] * (len(ids) // batch_size)
        left = len(ids) % batch_size
        if left == 1 and sizes:
            sizes[-1] += 1
        elif left:
            sizes.append(left)
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.ids), generator=self.generator)
        return iter(self.ids[order].split(self.sizes))


class AvalancheBatches:
    """The sample choice of an Avalanche loader, as ids of the store; the generator seeds each pass over it."""

    def __init__(self, loader: MultiDatasetDataLoader, ids: Tensor, generator: torch.Generator) -> None:
        self.loader, self.ids, self.generator = loader, ids, generator

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tensor]:
        return apart(self._pass, seed_of(self.generator))

    def _pass(self) -> Iterator[Tensor]:
        loader = self.loader
        samplers = loader._create_samplers(loader.datasets, loader.batch_sizes, False, loader.loader_kwargs)
        chosen = MultiDatasetSampler(
            loader.datasets,
            samplers,
            termination_dataset_idx=loader.termination_dataset,
            oversample_small_datasets=loader.oversample_small_datasets,
            never_ending=loader.never_ending,
        )
        for indices in chosen:
            yield self.ids[torch.as_tensor(indices)]


class CollatedLoader:
    """Another loader's float batches, augmented and moved to the device."""

    def __init__(self, lane: Lane, loader: Any, iterations: int | None = None) -> None:
        self.lane, self.loader, self.iterations = lane, loader, iterations

    def __len__(self) -> int:
        return self.iterations if self.iterations is not None else len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        endless = itertools.chain.from_iterable(itertools.repeat(self.loader))
        source = self.loader if self.iterations is None else itertools.islice(endless, self.iterations)
        batches = apart(lambda: source, seed_of(self.lane.generator))
        store, augmentation = self.lane.store, self.lane.augmentation
        self.lane.served = None
        for images, labels, *_, tasks in batches:
            x_NCHW = augmentation.take(images, torch.arange(len(images)), store.black(images.device))
            if self.lane.channels_last:
                x_NCHW = channels_last(x_NCHW)
            yield [x_NCHW.to(store.device, non_blocking=True), labels.to(store.device, non_blocking=True), tasks]
