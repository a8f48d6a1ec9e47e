"""Data and weights are read once a process, as long as their files stay the same, and few are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runs_helpers import NOWHERE, Drawn, DrawnSplit, small_run
from safetensors.torch import save_file

from cl_runner.backbones import weights
from cl_runner.benchmarks import cache
from cl_runner.benchmarks.classes import SplitDigits, SplitFolder
from cl_runner.benchmarks.sources.digits import Digits
from cl_runner.benchmarks.sources.folder import ImageFolder
from cl_runner.errors import RequestError


@pytest.fixture(autouse=True)
def nothing_read():
    cache.forget()
    weights.forget()
    yield
    cache.forget()
    weights.forget()


@pytest.fixture
def loads(monkeypatch):
    """The sources that are read from now on."""
    seen = []
    for kind in (Digits, ImageFolder, Drawn):
        load = kind.load
        monkeypatch.setattr(
            kind, "load", lambda self, progress=None, load=load: seen.append(type(self)) or load(self, progress)
        )
    return seen


def test_many_class_orders_are_one_dataset(loads):
    streams = [
        SplitDigits(class_order_seed=seed, per_class=10 + seed, split_seed=seed).stream(NOWHERE) for seed in range(20)
    ]
    assert loads == [Digits] and cache.kept() == 1
    assert len({stream.store.images_NCHW.data_ptr() for stream in streams}) == 1
    cache.forget()
    for seed, stream in enumerate(streams):
        fresh = SplitDigits(class_order_seed=seed, per_class=10 + seed, split_seed=seed).stream(NOWHERE)
        cache.forget()
        assert stream.class_order == fresh.class_order
        for task, other in zip(stream.tasks, fresh.tasks, strict=True):
            for part in ("train", "validation", "test"):
                pair = [getattr(one, part)[:] for one in (task, other)]
                assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


def images(root, colour: int, n: int = 2):
    from PIL import Image

    for part in ("train", "test"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for index in range(n):
                Image.fromarray(np.full((8, 8, 3), colour, np.uint8)).save(root / part / name / f"{index}.png")
    return root


def test_what_changes_the_pixels_is_read_anew_and_few_are_kept(loads, tmp_path):
    root = images(tmp_path / "one", 10)

    def pixel(**options) -> int:
        stream = SplitFolder(n_tasks=2, root=str(root), **{"image_size": 8, **options}).stream(NOWHERE)
        return int(stream.store.images_NCHW[0, 0, 0, 0])

    assert [pixel(), pixel(), len(loads)] == [10, 10, 1]
    pixel(image_size=4)
    assert len(loads) == 2 and cache.kept() == 2
    images(root, 20)
    assert pixel() == 20, "the files are others"
    assert cache.kept() == cache.KEPT == 2
    images(root, 20, n=3)
    pixel()
    assert len(loads) == 4
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(RequestError, match="does not decode"):
        pixel()


def test_a_source_of_a_user_is_read_every_time_unless_it_says_what_it_reads(loads, monkeypatch):
    for _ in range(2):
        DrawnSplit(n_tasks=2).stream(NOWHERE)
    assert loads == [Drawn, Drawn] and cache.kept() == 0
    monkeypatch.setattr(Drawn, "reads", lambda self: [])
    for n_train in (6, 6, 7):
        assert len(DrawnSplit(n_tasks=2, n_train=n_train).stream(NOWHERE).tasks[0].train) == 5 * n_train
    assert len(loads) == 4, "once for each number of images"


def test_a_run_on_the_cached_data_changes_nothing_in_it(tmp_path):
    first = SplitDigits().stream(NOWHERE).store
    before = first.host_NCHW.clone()
    first.to(torch.device("cpu"), "host")
    small_run(tmp_path, "benchmark.augmentation=crop_flip", "trainer.epochs=2")
    again = SplitDigits().stream(NOWHERE).store
    assert again is not first and again.host_NCHW is first.host_NCHW and torch.equal(before, again.host_NCHW)


def test_weights_are_read_again_where_the_file_is_another(tmp_path, monkeypatch):
    read, original = [], weights._read
    monkeypatch.setattr(weights, "_read", lambda file: read.append(file.name) or original(file))
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for value, file in enumerate(files):
        save_file({"x": torch.full((2,), float(value))}, file)
    for file in (files[0], files[0]):
        state = weights.read_state(file)
        state.clear()  # the caller's own
    assert read == ["a.safetensors"] and weights.read_state(files[0])["x"].tolist() == [0, 0]
    save_file({"x": torch.full((3,), 7.0)}, files[0])
    assert weights.read_state(files[0])["x"].tolist() == [7, 7, 7]
    for file in files:
        weights.read_state(file)
    assert len(weights._kept) == weights.KEPT == 2
