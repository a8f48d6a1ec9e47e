"""Images that are opened one by one: files on disk, and arrays that are read when the first is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cl_runner.benchmarks.bad_samples import OR_SKIP, undecodable
from cl_runner.benchmarks.sources.source import unreadable
from cl_runner.errors import RequestError

if TYPE_CHECKING:
    from cl_runner.benchmarks.sources.cifar import Cifar100
    from cl_runner.benchmarks.sources.mnist import Mnist
    from cl_runner.benchmarks.sources.source import ImageData


class FileImages:
    """An :class:`~cl_runner.benchmarks.domains.domain.ImageSet` of image files.

    Args:
        paths: the files, in the order of the set; nothing is read until one is opened.
        key: the configuration key that says where they lie.
    """

    def __init__(self, paths: Sequence[str | Path], key: str) -> None:
        self.paths = [os.fspath(path) for path in paths]  # strings: a Path costs ten times the memory
        self.key = key

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Image.Image:
        """Decodes one file completely, in its own mode and size.

        Raises:
            RequestError: it is missing or damaged; the message names it.
        """
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                image.load()
                return image
        except Exception as error:  # Pillow's plugins raise whatever they stumble over
            raise undecodable(path, self.key, error, OR_SKIP) from error

    def fingerprint(self) -> str:
        """Returns a sha256 of every file's path below their common folder, size and time of change, in order.

        Raises:
            RequestError: a file is missing or cannot be asked.
        """
        wanted = _by_folder(self.paths)
        states: dict[str, dict[str, os.stat_result]] = {}
        for folder, names in wanted.items():
            states[folder] = {e.name: _state(e, self.key) for e in _scan(folder, self.key) if e.name in names}
        top = os.path.commonpath(list(wanted)) if wanted else ""
        digest = hashlib.sha256()
        for path in self.paths:
            folder, name = os.path.split(path)
            if name not in states[folder]:
                raise RequestError(f"{self.key}: {path} is missing", "restore the file")
            state = states[folder][name]
            digest.update(f"{os.path.relpath(path, top)}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        return digest.hexdigest()


class ArrayImages:
    """An :class:`~cl_runner.benchmarks.domains.domain.ImageSet` of MNIST or CIFAR-100, the train part first.

    The arrays are read, and verified by their checksums, when the first image is opened, and stay in memory.

    Args:
        source: where they come from.
        count: images in both parts together.
    """

    def __init__(self, source: Mnist | Cifar100, count: int) -> None:
        self._source = source
        self._count = count
        self._data: ImageData | None = None
        self._lock = Lock()  # images are opened by several threads; only the first reads

    def __len__(self) -> int:
        return self._count

    def open(self, index: int) -> Image.Image:
        """Returns one image: mode L for MNIST, RGB for CIFAR-100.

        Raises:
            RequestError: the data is missing or damaged.
        """
        with self._lock:
            if self._data is None:
                self._data = self._source.load()
            data = self._data
        index = range(self._count)[index]
        n_train = len(data.train_images)
        pixels = data.train_images[index] if index < n_train else data.test_images[index - n_train]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def fingerprint(self) -> str:
        """Returns a sha256 of the official checksums: data that differs from them is refused, never opened."""
        text = "\n".join((self._source.name, *self._source.checksums()))
        return hashlib.sha256(text.encode()).hexdigest()


def missing_files(paths: Sequence[str], key: str) -> list[int]:
    """Returns the indices of files that do not exist, with one look at each folder instead of one at each file."""
    there = {folder: {entry.name for entry in _scan(folder, key)} for folder in _by_folder(paths)}
    split = map(os.path.split, paths)
    return [index for index, (folder, name) in enumerate(split) if name not in there[folder]]


def _by_folder(paths: Iterable[str]) -> dict[str, set[str]]:
    """Returns the names of files by their folder."""
    found: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        found.setdefault(folder, set()).add(name)
    return found


def _scan(folder: str, key: str) -> Iterator[os.DirEntry[str]]:
    """Gives what a folder holds; nothing where it does not exist."""
    try:
        with os.scandir(folder or ".") as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise unreadable(Path(folder), key, error) from error


def _state(entry: os.DirEntry[str], key: str) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:  # a link that leads nowhere
        raise unreadable(Path(entry.path), key, error) from error


def index_parts(*sizes: int) -> list[np.ndarray]:
    """Returns consecutive indices, int64, for parts of these sizes that lie one after the other."""
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end, dtype=np.int64) for size, end in zip(sizes, ends, strict=True)]
