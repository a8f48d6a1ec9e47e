"""Task streams: which classes and images each task gets, and that nothing but the right seed changes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from runs_helpers import NOWHERE, DrawnSplit, drawn_stream
from torch.utils.data import TensorDataset

from cl_runner.benchmarks.avalanche_view import avalanche_benchmark, sample_ids
from cl_runner.benchmarks.classes import SplitDigits
from cl_runner.benchmarks.stream import TaskStream
from cl_runner.errors import RequestError


def sizes(stream: TaskStream) -> list[int]:
    return [len(task.classes) for task in stream.tasks]


def seen(stream: TaskStream, part: str) -> list[set[tuple[int, int]]]:
    """(dataset label, number within the class) of every image of every task, read from the pixels."""
    found = []
    for task in stream.tasks:
        images = stream.store.host_NCHW[getattr(task, part).ids]
        found.append({(int(image[0, 0, 0]), int(image[1, 0, 0])) for image in images})
    return found


@pytest.mark.parametrize(
    ("n_classes", "options", "expected"),
    [
        (10, {"n_tasks": 5}, [2] * 5),
        (10, {"n_tasks": 1}, [10]),
        (10, {"n_tasks": 10}, [1] * 10),
        (100, {"n_tasks": 20}, [5] * 20),
        (200, {"n_tasks": 5, "first_task_classes": 100}, [100, 25, 25, 25, 25]),
        (10, {"n_tasks": 3, "first_task_classes": 4}, [4, 3, 3]),
        (10, {"n_tasks": 1, "first_task_classes": 10}, [10]),
    ],
)
def test_tasks_cut_the_classes(n_classes, options, expected):
    stream = drawn_stream(n_classes=n_classes, **options)
    assert sizes(stream) == expected
    assert [label for task in stream.tasks for label in task.classes] == list(range(n_classes))
    for task in stream.tasks:  # every image of the task's classes and no other, in both parts
        for part, count in ((task.train, 6), (task.test, 2)):
            labels = stream.store.labels[part.ids].tolist()
            assert sorted(labels) == sorted(list(task.classes) * count)
        assert (task.n_train, task.n_test) == (len(task.train), len(task.test))


@pytest.mark.parametrize(
    ("options", "names", "works"),
    [
        ({"n_tasks": 3}, "benchmark.n_tasks=3", "1, 2, 5, 10"),
        ({"n_tasks": 20}, "benchmark.n_tasks=20", "1, 2, 5, 10"),
        ({"n_tasks": 3, "first_task_classes": 5}, "benchmark.first_task_classes=5", "whole number"),
        ({"n_tasks": 5, "first_task_classes": 10}, "benchmark.first_task_classes=10", "whole number"),
        ({"n_tasks": 5, "first_task_classes": 8}, "benchmark.first_task_classes=8", "whole number"),
        ({"n_tasks": 1, "first_task_classes": 4}, "benchmark.first_task_classes=4", "whole number"),
        ({"n_tasks": 2, "first_task_classes": 12}, "benchmark.first_task_classes=12", "whole number"),
    ],
)
@pytest.mark.parametrize("method", ["stream", "outline"])
def test_what_does_not_divide_is_refused(options, names, works, method):
    with pytest.raises(RequestError) as caught:
        getattr(DrawnSplit(n_classes=10, **options), method)(NOWHERE)
    first, second = str(caught.value).splitlines()
    assert names in first and works in second


def test_classes_keep_the_datasets_order_by_default():
    stream = drawn_stream(n_tasks=5)
    assert stream.class_order == tuple(range(10))
    assert [task.class_names for task in stream.tasks][1] == ("bird 2", "bird 3")


@pytest.mark.parametrize("seed", [0, 1, 1234])
def test_the_class_order_is_torchs_permutation_and_avalanches(seed):
    torch.manual_seed(seed)  # the global generator: what Avalanche uses, and not what the stream uses
    expected = torch.randperm(10).tolist()
    stream = drawn_stream(n_tasks=5, class_order_seed=seed)
    assert list(stream.class_order) == expected

    images, labels = torch.zeros(20, 1), torch.arange(20) % 10
    dataset = TensorDataset(images, labels)
    dataset.targets = labels.tolist()
    theirs = nc_benchmark(dataset, dataset, n_experiences=5, task_labels=False, seed=seed)
    assert [sorted(item.classes_in_this_experience) for item in theirs.train_stream] == [
        sorted(stream.class_order[label] for label in task.classes) for task in stream.tasks
    ]


def test_an_order_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.randperm(5)
    torch.manual_seed(7)
    drawn_stream(class_order_seed=3)
    assert torch.equal(torch.randperm(5), expected)


@pytest.mark.parametrize("order_seed", [None, 0, 5])
def test_labels_follow_the_order_and_images_keep_their_class(order_seed):
    stream = drawn_stream(n_tasks=5, class_order_seed=order_seed)
    store = stream.store
    for index in range(len(store)):
        official = int(store.host_NCHW[index, 0, 0, 0])
        label = int(store.labels[index])
        task = next(task for task in stream.tasks if label in task.classes)
        assert stream.class_order[label] == official
        assert task.class_names[task.classes.index(label)] == f"bird {official}"


@pytest.mark.parametrize("labelled", [True, False])
def test_task_labels_or_none(labelled):
    stream = drawn_stream(n_tasks=5, task_labels=labelled)
    scenario = avalanche_benchmark(stream)
    for index, (experience, task) in enumerate(zip(scenario.train_stream, stream.tasks, strict=True)):
        expected = index if labelled else 0
        assert experience.task_labels == [expected]
        assert {item[-1] for item in experience.dataset} == {expected}
        assert sorted(experience.classes_in_this_experience) == list(task.classes)
        assert torch.equal(sample_ids(experience.dataset), task.train.ids)
        assert torch.equal(sample_ids(scenario.test_stream[index].dataset), task.test.ids)


@pytest.mark.parametrize("per_class", [1, 3, 6, 100])
def test_per_class_limits_training_images_only(per_class):
    stream = drawn_stream(n_tasks=5, per_class=per_class)
    kept = min(per_class, 6)
    assert [task.n_train for task in stream.tasks] == [2 * kept] * 5
    assert [task.n_test for task in stream.tasks] == [4] * 5
    for images in seen(stream, "train"):
        counts = np.bincount([label for label, _ in images])
        assert set(counts[counts > 0]) == {kept}


@pytest.mark.parametrize(
    ("fraction", "n_train", "held_out"), [(0.1, 40, 4), (0.25, 6, 2), (0.01, 6, 1), (0.99, 6, 5), (0.5, 1, 0)]
)
def test_the_validation_split_is_stratified_and_disjoint(fraction, n_train, held_out):
    stream = drawn_stream(n_tasks=5, n_train=n_train, validation_fraction=fraction)
    for task in stream.tasks:
        if held_out == 0:
            assert task.validation is None
            continue
        train, validation = set(task.train.ids.tolist()), set(task.validation.ids.tolist())
        assert not train & validation
        assert len(train) == task.n_train == 2 * (n_train - held_out)
        assert len(train | validation) == 2 * n_train
        labels = stream.store.labels[task.validation.ids].tolist()
        assert sorted(labels) == sorted(list(task.classes) * held_out)
        assert not (train | validation) & set(task.test.ids.tolist())


def split(**options):
    """The images held out and those kept, whatever task they are in."""
    stream = drawn_stream(n_tasks=5, n_train=20, per_class=15, validation_fraction=0.2, **options)
    return [set().union(*seen(stream, part)) for part in ("validation", "train")]


def test_only_split_seed_chooses_the_images():
    torch.manual_seed(1)
    np.random.seed(1)
    reference = split()
    torch.manual_seed(2)
    np.random.seed(2)
    assert split() == reference, "drawn from the global generators"
    assert split(class_order_seed=9) == reference, "the class order moved images into another part"
    assert split(task_labels=False) == reference
    other = split(split_seed=1)
    assert other[0] != reference[0] and other[1] != reference[1]


def test_every_class_has_a_draw_of_its_own():
    validation, _ = split()
    chosen = {label: frozenset(number for own, number in validation if own == label) for label in range(10)}
    assert len(set(chosen.values())) > 5


@pytest.mark.parametrize("options", [{}, {"class_order_seed": 4}, {"n_tasks": 3, "first_task_classes": 4}])
def test_the_outline_agrees_with_the_stream(options):
    split = DrawnSplit(n_train=20, validation_fraction=0.1, per_class=10, **options)
    outline, stream = split.outline(NOWHERE), split.stream(NOWHERE)
    assert outline.store is None
    for name in ("name", "task_labels", "n_classes", "image_shape", "class_order", "augmentation"):
        assert getattr(outline, name) == getattr(stream, name)
    for planned, task in zip(outline.tasks, stream.tasks, strict=True):
        assert (planned.name, planned.classes) == (task.name, task.classes)
        assert (planned.n_train, planned.n_test) == (task.n_train, task.n_test)


def test_the_outline_of_the_digits_is_close():
    split = SplitDigits(n_tasks=5, validation_fraction=0.1)
    for planned, task in zip(split.outline(NOWHERE).tasks, split.stream(NOWHERE).tasks, strict=True):
        assert planned.class_names == task.class_names  # classes have between 139 and 146 training images
        assert abs(planned.n_train - task.n_train) < 10
        assert abs(planned.n_test - task.n_test) < 5
