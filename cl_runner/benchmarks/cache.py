"""Datasets that this process has read already: the cells of a sweep decode them once."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cl_runner.benchmarks.sources.source import Source
from cl_runner.errors import RequestError

KEPT = 2  # datasets; the largest of the shipped ones takes 1.8 GB
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Decoded:
    """A dataset as every run uses it, whatever its tasks, class order and splits; nobody may write into it.

    Attributes:
        images_NCHW: uint8, training part first.
        train_labels: the dataset's own labels, (n_train,).
        test_labels: (n_test,).
        class_names: by label.
        skipped: images that could not be read and were left out, a line each.
    """

    images_NCHW: Tensor
    train_labels: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    skipped: tuple[str, ...] = ()


_kept: OrderedDict[tuple[object, ...], Decoded] = OrderedDict()


def decoded(source: Source, progress: Progress | None = None) -> Decoded:
    """Returns a source's data, read once a process as long as its files stay what they are.

    Args:
        source: one whose :meth:`~cl_runner.benchmarks.sources.source.Source.reads` is None is read every time.
        progress: called while it is read.
    """
    key = _key(source)
    if key is not None and key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    data = source.load(progress)
    images = np.concatenate([data.train_images, data.test_images])
    ready = Decoded(
        torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        data.train_labels,
        data.test_labels,
        data.class_names,
        data.skipped,
    )
    ready.train_labels.setflags(write=False)
    ready.test_labels.setflags(write=False)
    key = _key(source)  # loading may have unpacked an archive
    if key is not None:
        _kept[key] = ready
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return ready


def forget() -> None:
    """Lets go of everything that was read."""
    _kept.clear()


def kept() -> int:
    """Returns how many datasets are held."""
    return len(_kept)


def _key(source: Source) -> tuple[object, ...] | None:
    """What determines the data: the source, its options, and the size and time of every file that it reads."""
    try:
        places = source.reads()
    except RequestError:  # loading says what is wrong
        return None
    if places is None:
        return None
    return type(source), repr(sorted(vars(source).items())), _fingerprint(places)


def _fingerprint(places: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for place in places:
        below = (Path(at) / name for at, _, names in os.walk(place) for name in names)
        for file in sorted(below) if place.is_dir() else [place]:
            found = file.stat()
            digest.update(f"{file.absolute()}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
