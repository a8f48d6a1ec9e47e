"""The training lane: the same tensors as sample by sample, each sample once, and Avalanche's own choice of samples."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils.data_loader import ReplayDataLoader, TaskBalancedDataLoader
from avalanche.benchmarks.utils.utils import concat_datasets
from runs_helpers import drawn_stream, generator, noise_store
from torch.utils.data import DataLoader
from torchvision.transforms import functional as vision

from cl_runner.benchmarks.avalanche_view import SampleView, avalanche_benchmark, sample_ids
from cl_runner.benchmarks.store import ImageStore
from cl_runner.training import lane as lane_module
from cl_runner.training.augment import Augmentation
from cl_runner.training.draws import seed_of
from cl_runner.training.lane import CollatedLoader, Lane, LaneLoader, ShuffledBatches

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_lane(store: ImageStore, name: str = "none", seed: int = 0, channels_last: bool = False) -> Lane:
    return Lane(store, Augmentation(name, store.host_NCHW.shape[2], generator(seed)), channels_last)


def numbered(n: int) -> ImageStore:
    """Sample i has label i."""
    images = np.zeros((n, 4, 4, 1), dtype=np.uint8)
    return ImageStore(images=images, labels=np.arange(n), tasks=np.zeros(n), mean=(0.5,), std=(0.5,))


def places(height: int, width: int, n: int) -> torch.Tensor:
    """Images whose pixels say where they are: (row + 1, column + 1), so that 0 is padding."""
    rows = torch.arange(1, height + 1).view(-1, 1).expand(height, width)
    columns = torch.arange(1, width + 1).view(1, -1).expand(height, width)
    return torch.stack([rows, columns]).to(torch.uint8).expand(n, 2, height, width).contiguous()


# ------------------------------------------------------------------------------------------ normalisation


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_the_samples_normalised_one_by_one(channels):
    store = noise_store(channels=channels)
    ids = torch.tensor([3, 0, 39, 7, 7])
    (x, labels, tasks), *rest = make_lane(store).evaluation(ids, 8)
    assert not rest and x.dtype == torch.float32 and tasks.device.type == "cpu"
    assert torch.equal(x, torch.stack([store.normalise(store.host_NCHW[i]) for i in ids]))
    view = SampleView(store)
    assert torch.equal(x, torch.stack([view[i][0] for i in ids.tolist()]))
    assert labels.tolist() == [view[i][1] for i in ids.tolist()] == [3, 0, 3, 3, 3]
    for row, index in zip(x, ids.tolist(), strict=True):  # torchvision divides where the store multiplies
        image = vision.to_tensor(store.host_NCHW[index].permute(1, 2, 0).numpy())
        torch.testing.assert_close(row, vision.normalize(image, store.mean, store.std), rtol=1e-5, atol=1e-6)


def test_plugins_that_read_the_dataset_see_the_lanes_tensors():
    stream = drawn_stream(n_tasks=5, class_order_seed=1)
    lane = make_lane(stream.store)
    for experience in avalanche_benchmark(stream).train_stream:
        theirs = DataLoader(experience.dataset, batch_size=5, collate_fn=experience.dataset.collate_fn)
        ours = lane.evaluation(sample_ids(experience.dataset), 5)
        for (x, y, tasks), (ours_x, ours_y, ours_tasks) in zip(theirs, ours, strict=True):
            assert torch.equal(x, ours_x)
            assert torch.equal(y, ours_y)
            assert torch.equal(tasks, ours_tasks)


def test_a_part_gives_the_same_tensors():
    stream = drawn_stream(n_tasks=5)
    part = stream.tasks[2].train
    x, labels = part[torch.tensor([4, 1])]
    ((lane_x, lane_labels, _),) = make_lane(stream.store).evaluation(part.ids[[4, 1]], 2)
    assert torch.equal(x, lane_x) and torch.equal(labels, lane_labels)


def test_a_single_channel_is_last_by_its_strides_so_that_layers_go_on_in_that_format():
    store = noise_store(20, channels=1)
    ((x, *_),) = make_lane(store, channels_last=True).training(torch.arange(20), 20)
    ((plain, *_),) = make_lane(store).training(torch.arange(20), 20)
    assert x.stride() == (64, 1, 8, 1) and plain.stride() == (64, 64, 8, 1)
    assert torch.equal(x, plain)
    layer = torch.nn.Conv2d(1, 4, 3)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    assert not layer(plain).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ((), True),
        (("trainer.channels_last=false",), False),
        (("backbone=resnet20",), True),
        (("strategy=agem", "strategy.sample_size=5"), False),
        (("placement=convs", "trainer.precision=bfloat16"), True),
    ],
)
def test_channels_last_where_it_pays(typed, expected):
    from cl_runner.assembly import build_strategy
    from cl_runner.config.checks import settle
    from cl_runner.config.compose import compose
    from cl_runner.modalities import modality_of

    config = settle(compose([*typed, "trainer.device=cpu"]))
    modality = modality_of(config)
    _, stream = modality.open()
    with torch.device("meta"):
        network = modality.network(stream, load_weights=False)
        _, workshop = build_strategy(config, stream, network, modality)
    assert workshop.channels_last is expected


def test_channels_last_changes_the_format_and_no_value():
    store = noise_store()
    plain = [x for x, *_ in make_lane(store, "crop_flip").training(torch.arange(40), 16)]
    last = [x for x, *_ in make_lane(store, "crop_flip", channels_last=True).training(torch.arange(40), 16)]
    for a, b in zip(plain, last, strict=True):
        assert torch.equal(a, b)
        assert b.is_contiguous(memory_format=torch.channels_last) and not a.is_contiguous(
            memory_format=torch.channels_last
        )


# ------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("name", ["flip", "crop", "crop_flip"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (16, 24)])
@pytest.mark.parametrize("floats", [False, True])
def test_both_ways_of_augmenting_are_torchvisions(name, height, width, floats):
    store = noise_store(24, height=height, width=width)
    augmentation = Augmentation(name, height, generator())
    images, fill = store.host_NCHW, None
    if floats:
        images, fill = store.normalise(images), store.black(torch.device("cpu"))
    ids = torch.randint(0, 24, (60,), generator=generator(1))
    pad = augmentation.padding
    assert pad == (0 if name == "flip" else 4 if height >= 32 else height // 8)
    steps = 2 * pad + 1
    offsets = torch.randint(0, steps**2, (60,), generator=generator(2))
    flips = torch.randint(0, 2, (60,), generator=generator(3)) * int("flip" in name)
    chunk, places = augmentation._slices(images, ids, offsets, flips, fill)
    slices = chunk.index_select(0, places)
    gathered = augmentation._gather(images, ids, offsets, flips, fill)
    assert slices.dtype == images.dtype and torch.equal(slices, gathered)

    black = store.host_NCHW.new_zeros(3, height + 2 * pad, width + 2 * pad)
    for row, index, offset, flip in zip(slices, ids.tolist(), offsets.tolist(), flips.tolist(), strict=True):
        padded = vision.pad(store.host_NCHW[index], [pad] * 4) if pad else store.host_NCHW[index]
        assert padded.shape == black.shape
        image = vision.crop(padded, offset // steps, offset % steps, height, width)
        image = vision.hflip(image) if flip else image
        assert torch.equal(row, store.normalise(image) if floats else image)  # so padding is black normalised


def test_nothing_is_random_where_nothing_was_asked_for():
    store = noise_store()
    augmentation = Augmentation("none", 8, generator())
    before = augmentation.generator.get_state()
    assert torch.equal(augmentation.take(store.host_NCHW, torch.tensor([5, 2])), store.host_NCHW[[5, 2]])
    assert torch.equal(augmentation.generator.get_state(), before)


@pytest.mark.parametrize("size", [8, 32])
def test_every_sample_has_a_draw_of_its_own_and_all_are_equally_likely(size):
    augmentation = Augmentation("crop_flip", size, generator(4))
    pad, steps = augmentation.padding, 2 * augmentation.padding + 1
    n = 100 * steps**2
    taken = augmentation.take(places(size, size, n), torch.arange(n)).int()
    middle = size // 2
    top = taken[:, 0, middle, middle] - 1 - middle + pad
    flipped = taken[:, 1, middle, middle] > taken[:, 1, middle, middle + 1]
    column = torch.where(flipped, taken[:, 1, middle, size - 1 - middle], taken[:, 1, middle, middle])
    left = column - 1 - middle + pad
    counts = np.bincount((top * steps + left).numpy(), minlength=steps**2)
    assert len(counts) == steps**2
    chi_square = ((counts - 100) ** 2 / 100).sum()
    freedom = steps**2 - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations
    assert abs(flipped.float().mean() - 0.5) < 4 * 0.5 / n**0.5
    assert abs(np.corrcoef(flipped.numpy(), top.numpy())[0, 1]) < 4 / n**0.5


def test_an_epoch_is_augmented_anew():
    store = noise_store()
    loader = make_lane(store, "crop_flip").training(torch.arange(8), 8)
    (first, labels, _), (second, other, _) = next(iter(loader)), next(iter(loader))
    assert sorted(labels.tolist()) == sorted(other.tolist())
    assert not torch.equal(first.sort(0).values, second.sort(0).values)


def test_evaluation_is_never_augmented():
    store = noise_store()
    ((x, *_),) = make_lane(store, "crop_flip").evaluation(torch.arange(40), 64)
    assert torch.equal(x, store.normalise(store.host_NCHW))


# ------------------------------------------------------------------------------------------------- epochs


@pytest.mark.parametrize(
    ("n", "batch", "expected"),
    [(40, 16, [16, 16, 8]), (32, 16, [16, 16]), (33, 16, [16, 17]), (1, 16, [1]), (5, 16, [5]), (3, 1, [1, 1, 1])],
)
def test_batch_sizes_leave_no_single_sample(n, batch, expected):
    batches = ShuffledBatches(torch.arange(n), batch, generator())
    assert len(batches) == len(expected)
    assert [len(item) for item in batches] == expected


@pytest.mark.parametrize("chunk", [1, 10, 2048])
def test_every_sample_comes_exactly_once_an_epoch(chunk, monkeypatch):
    monkeypatch.setattr(lane_module, "CHUNK", chunk)
    store = numbered(50)
    ids = torch.arange(5, 47)
    loader = make_lane(store).training(ids, 8)
    epochs = [torch.cat([labels for _, labels, _ in loader]).tolist() for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == ids.tolist()
    assert epochs[0] != epochs[1] != epochs[2], "the order is the same in every epoch"
    again = make_lane(store).training(ids, 8)
    assert torch.cat([labels for _, labels, _ in again]).tolist() == epochs[0], "the seed does not fix the order"


@pytest.mark.parametrize("iterations", [1, 3, 5, 12, 17])
def test_iterations_are_exactly_as_many_batches(iterations):
    loader = make_lane(numbered(40)).training(torch.arange(40), 8, iterations)  # an epoch is 5 batches
    assert len(loader) == iterations
    drawn = [labels.tolist() for _, labels, _ in loader]
    assert len(drawn) == iterations and {len(labels) for labels in drawn} == {8}
    for start in range(0, iterations - 4, 5):
        assert sorted(sum(drawn[start : start + 5], [])) == list(range(40))


# ------------------------------------------------------------------------------ loaders that plugins bring


def three_tasks(task_labels: bool = True):
    """Tasks of 40, 30 and 30 images; the first 40 samples of the first class split."""
    return drawn_stream(n_tasks=3, n_train=10, first_task_classes=4, task_labels=task_labels)


def origins(batch, stream):
    """How many samples of each task are in a batch, by their labels."""
    owner = {label: task.index for task in stream.tasks for label in task.classes}
    return Counter(owner[int(label)] for label in batch[1])


@pytest.mark.parametrize("task_labels", [True, False])
def test_a_replay_loader_keeps_avalanches_choice(task_labels):
    stream = three_tasks(task_labels)
    scenario = avalanche_benchmark(stream)
    old, new = scenario.train_stream[0].dataset, scenario.train_stream[1].dataset
    memory = old.subset(list(range(12)))
    theirs = ReplayDataLoader(
        new, memory, oversample_small_tasks=True, batch_size=8, batch_size_mem=8, shuffle=True, num_workers=0
    )
    lane = make_lane(stream.store)
    adopted = lane.adopt(theirs)
    assert isinstance(adopted, LaneLoader) and len(adopted) == len(theirs) == 4
    batches = list(adopted)
    counts = [origins(batch, stream) for batch in batches]
    assert counts == [origins(batch, stream) for batch in theirs]
    assert counts == [Counter({1: 8, 0: 8}), Counter({1: 8, 0: 4}), Counter({1: 8, 0: 8}), Counter({1: 6, 0: 4})]
    new_labels = Counter(int(label) for _, labels, _ in batches for label in labels if int(label) >= 4)
    assert new_labels == Counter({4: 10, 5: 10, 6: 10}), "an epoch holds every new sample once"
    used = {tuple(x[:2, 0, 0].tolist()) for x, labels, _ in batches for x in x[labels < 4]}
    kept = {tuple(memory[i][0][:2, 0, 0].tolist()) for i in range(12)}
    assert used == kept, "old samples come from the memory, and all of it is used"
    for x, labels, tasks in batches:  # images, labels and task labels belong together
        classes = torch.round((x[:, 0, 0, 0] * 0.25 + 0.3) * 255).long()
        assert torch.equal(classes, labels)
        assert tasks.tolist() == [int(task_labels and label >= 4) for label in labels]


def test_a_task_balanced_loader_keeps_avalanches_balance():
    stream = three_tasks()
    datasets = [experience.dataset for experience in avalanche_benchmark(stream).train_stream]
    theirs = TaskBalancedDataLoader(
        concat_datasets(datasets), oversample_small_groups=True, batch_size=9, shuffle=True, num_workers=0
    )
    batches = list(make_lane(stream.store).adopt(theirs))
    assert len(batches) == len(theirs) == len(list(theirs))
    for batch in batches[:-1]:
        assert origins(batch, stream) == Counter({0: 3, 1: 3, 2: 3})
        assert sorted(batch[2].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    whole = sum((origins(batch, stream) for batch in batches), Counter())
    assert whole[0] == 40 and whole[1] == whole[2] >= 40 - 2, "smaller tasks are oversampled to the largest"


def test_an_adopted_loader_obeys_iterations_and_is_adopted_once():
    stream = three_tasks()
    new = avalanche_benchmark(stream).train_stream[1].dataset
    theirs = ReplayDataLoader(new, new, batch_size=8, batch_size_mem=8, shuffle=True, num_workers=0)
    lane = make_lane(stream.store)
    adopted = lane.adopt(theirs, 11)
    assert len(adopted) == 11 and len(list(adopted)) == 11
    assert lane.adopt(adopted) is adopted


@pytest.mark.parametrize("iterations", [None, 3])
def test_a_foreign_loader_keeps_its_samples_and_gets_the_lanes_augmentation(iterations):
    store = noise_store()
    lane = make_lane(store, "crop_flip", seed=5, channels_last=True)
    images = store.normalise(store.host_NCHW[:16])
    batch = (images, torch.arange(16), torch.zeros(16, dtype=torch.int64))
    adopted = lane.adopt([batch, batch], iterations)
    assert isinstance(adopted, CollatedLoader)
    served = list(adopted)
    assert len(served) == len(adopted) == (iterations or 2)
    after = generator(5)
    seed_of(after)  # with which the foreign loader draws
    expected = Augmentation("crop_flip", 8, after).take(store.host_NCHW, torch.arange(16))
    assert torch.equal(served[0][0], store.normalise(expected))
    assert torch.equal(served[0][1], batch[1])
    assert served[0][0].is_contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------- placement


def batches_under(placement: str, device: str, name: str) -> list:
    store = noise_store().to(torch.device(device), placement)
    lane = make_lane(store, name)
    loaders = (lane.training(torch.arange(40), 16), lane.evaluation(torch.arange(40), 16))
    return [batch for loader in loaders for batch in loader]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("name", ["none", "crop_flip"])
def test_streaming_from_the_host_gives_what_resident_images_give(device, name):
    resident, streamed = (batches_under(placement, device, name) for placement in ("device", "host"))
    reference = batches_under("auto", "cpu", name)
    for *batches, expected in zip(resident, streamed, reference, strict=True):
        for x, labels, tasks in batches:
            assert x.device.type == labels.device.type == device and tasks.device.type == "cpu"
            assert torch.equal(x.cpu(), expected[0]) or device == "cuda"
            torch.testing.assert_close(x.cpu(), expected[0], rtol=1e-6, atol=1e-6)
            assert torch.equal(labels.cpu(), expected[1]) and torch.equal(tasks, expected[2])
