"""The task stream as Avalanche's strategies and plugins see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from torch import Tensor
from torch.utils.data import Dataset

from cl_runner.benchmarks.store import Store
from cl_runner.benchmarks.stream import TaskStream

SAMPLE_ID = "sample_id"  # survives Avalanche's subset and concat, so that any dataset leads back to the store


class SampleView(Dataset):
    """One sample at a time, for plugins that build loaders of their own (EWC, GEM, A-GEM, iCaRL, DER).

    Item i of images is (float32 (C, H, W), class id): the same numbers that a batch of the lane holds for sample i when
    nothing is augmented. Texts are padded to the longest of the store, so that they can be stacked.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.targets = store.host_labels.tolist()

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.store.item(index)


class Joinable(FlatData):
    """Task labels that iCaRL's memory can be joined to: Avalanche gives it constant ones, which `FlatData` refuses."""

    def concat(self, other: Any) -> Any:
        """These labels, then the others."""
        return super().concat(FlatData([list(other)]) if isinstance(other, ConstantSequence) else other)


def avalanche_benchmark(stream: TaskStream) -> CLScenario:
    """Builds the `train` and `test` streams, one experience a task, with task labels and a classes timeline.

    The probes follow the tasks in the test stream.
    """
    store = stream.store
    assert store is not None, "an outline has no data"
    whole = TaskAwareSupervisedClassificationDataset(
        [SampleView(store)],  # type: ignore[list-item]
        data_attributes=[
            DataAttribute(store.host_labels.tolist(), "targets"),
            TaskLabels(Joinable([store.tasks.tolist()])),
            DataAttribute(range(len(store)), SAMPLE_ID),
        ],
    )
    parts: dict[str, list[Any]] = {"train": [], "test": []}
    for task in stream.tasks:
        assert task.train is not None
        parts["train"].append(whole.subset(task.train.ids.tolist()))
    for task in stream.evaluated:
        assert task.test is not None
        parts["test"].append(whole.subset(task.test.ids.tolist()))
    scenario = with_task_labels(with_classes_timeline(benchmark_from_datasets(**parts)))
    scenario.n_classes_per_exp = [len(task.classes) for task in stream.tasks]  # iCaRL reads these two
    scenario.classes_order = list(range(stream.n_classes))
    scenario.whole = whole
    for experiences in scenario.streams.values():
        for experience in experiences:
            experience.benchmark = scenario
    return scenario


def sample_ids(dataset: Any) -> Tensor | None:
    """The store's ids of an Avalanche dataset's samples, or None where some sample is not in the store."""
    attribute = getattr(dataset, SAMPLE_ID, None)
    if attribute is None:
        return None
    return torch.tensor(_items(attribute.data), dtype=torch.int64)


def _items(ids: Any) -> list[int]:
    """The items of a sequence; Avalanche's are looked up one by one, and over a range from 0 are its own indices."""
    sources, indices = list(getattr(ids, "_datasets", ())), getattr(ids, "_indices", None)
    if indices is not None and len(sources) == 1 and isinstance(sources[0], range) and sources[0].start == 0:
        return list(indices)
    return list(ids)


class StoredSamples:
    """The samples of a scenario, by their ids in the store.

    Args:
        scenario: made by `avalanche_benchmark`.
    """

    def __init__(self, scenario: CLScenario) -> None:
        self._whole: Any = scenario.whole

    def ids(self, dataset: Any) -> list[int]:
        """The ids of a dataset's samples, in order."""
        found = sample_ids(dataset)
        assert found is not None, "a memory of ids holds samples of the stream"
        return [int(item) for item in found]

    def dataset(self, ids: Sequence[int]) -> Any:
        """A dataset of these samples, in order."""
        return self._whole.subset(list(ids))
