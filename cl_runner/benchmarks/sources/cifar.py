"""CIFAR-10 and CIFAR-100 from their official Python archives, unpacked or not."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cl_runner.benchmarks.sources.pickles import read_arrays
from cl_runner.benchmarks.sources.source import (
    ArchiveSource,
    Facts,
    ImageData,
    Labels,
    Progress,
    check_md5,
    unpack,
    unreadable,
)
from cl_runner.errors import RequestError, shown


class Cifar10(ArchiveSource):
    """60,000 photographs of 10 kinds of things, 32 x 32, colour.

    Looks for root/cifar-10-batches-py/, then root/cifar-10-python.tar.gz, then both in root/cifar10/. Loading unpacks
    the archive beside itself, or reads it where it lies if that folder cannot be written to. The files are pickles;
    none is opened before its md5 matched, and then nothing but arrays, texts, numbers, lists and dicts is built.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009; the checksums are those of
    torchvision 0.26, datasets/cifar.py.

    Args:
        root: the data folder of the user.
    """

    name = "cifar10"
    size = "170 MB"
    licence = "not stated"
    origin = "www.cs.toronto.edu/~kriz/cifar.html"
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    folder = "cifar-10-batches-py"
    archive = "cifar-10-python.tar.gz"
    archive_md5 = "c58f30108f718f92721af3b95e74349a"
    train_files: ClassVar[dict[str, str]] = {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    }
    test_files: ClassVar[dict[str, str]] = {"test_batch": "40351d587109b95175f43aff81a1287e"}
    names_file: ClassVar[dict[str, str]] = {"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"}
    names_key = "label_names"
    labels_key = "labels"

    def facts(self) -> Facts:
        """Returns the published numbers."""
        return Facts(10, (3, 32, 32), 50000, 10000, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))

    @property
    def files(self) -> dict[str, str]:
        """Every file that is read, with its md5."""
        return self.train_files | self.test_files | self.names_file

    def verify(self, progress: Progress | None = None) -> str:
        """Checks the md5 of every file of the folder, or of the archive."""
        place = self.place()
        if place.is_file():
            self.check_archive(place)
            return f"{self.name} is ready: {place}, md5 verified"
        for index, name in enumerate(self.files, start=1):
            self._checked(place / name, self._bytes(place / name))
            if progress:
                progress(index, len(self.files))
        return f"{self.name} is ready: {len(self.files)} files in {place}, md5 verified"

    def load(self, progress: Progress | None = None) -> ImageData:
        """Returns images of shape (N, 32, 32, 3)."""
        entries = self._entries(progress)
        train = [entries[name] for name in self.train_files]
        test = [entries[name] for name in self.test_files]
        return ImageData(*self._arrays(train), *self._arrays(test), self._names(entries))

    def labels(self) -> Labels:
        """Returns the labels alone; they share their files with the images, so those are read and let go."""
        entries = self._entries(None)
        train, test = (
            np.concatenate([entries[name][self.labels_key] for name in files]).astype(np.int64)
            for files in (self.train_files, self.test_files)
        )
        return Labels(train, test, self._names(entries))

    def checksums(self) -> tuple[str, ...]:
        """Returns the md5 of every file that is read: what the pixels depend on."""
        return tuple(self.files.values())

    def _names(self, entries: dict[str, dict[str, Any]]) -> tuple[str, ...]:
        (names_file,) = self.names_file
        return tuple(entries[names_file][self.names_key])

    def _entries(self, progress: Progress | None) -> dict[str, dict[str, Any]]:
        """Returns the contents of every file, each checked before it is opened."""
        place = self.place()
        packed: dict[str, bytes] = {}
        if place.is_file():
            self.check_archive(place)
            if os.access(place.parent, os.W_OK):
                place = unpack(place, self.folder, self.key)
            else:
                packed = self._read_archive(place)
        entries = {}
        for index, name in enumerate(self.files, start=1):
            content = self._bytes(place / name) if place.is_dir() else packed.pop(name)
            try:
                entries[name] = read_arrays(self._checked(place / name, content))
            except ValueError as error:
                message = f"{self.key}: {place / name} is no file of {self.name}: {shown(error, 200)}"
                raise RequestError(message, f"remove {place}, then {self.hint}") from error
            if progress:
                progress(index, len(self.files))
        return entries

    def _arrays(self, entries: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Returns images and labels; a file's rows are 1,024 red, 1,024 green and 1,024 blue values."""
        rows = np.concatenate([entry["data"] for entry in entries])
        labels = np.concatenate([np.asarray(entry[self.labels_key], dtype=np.int64) for entry in entries])
        return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels

    def _bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            message = f"{self.key}: {path.parent} lacks {path.name} (md5 {self.files[path.name]})"
            raise RequestError(message, f"remove {path.parent}, then {self.hint}") from error
        except OSError as error:
            raise unreadable(path, self.key, error) from error

    def _checked(self, path: Path, content: bytes) -> bytes:
        """Returns ``content`` once its md5 matched that of the file named by ``path``."""
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        hint = f"remove {path.parent}, then {self.hint}"
        check_md5(found, self.files[path.name], path, self.key, hint)
        return content

    def _read_archive(self, archive: Path) -> dict[str, bytes]:
        """Returns the files without writing anything."""
        contents = {}
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    if member.isfile() and folder == self.folder and name in self.files:
                        contents[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
        except (tarfile.TarError, EOFError, OSError) as error:
            raise RequestError(f"{self.key}: cannot read {archive}: {error}", self.hint) from error
        for name in self.files:
            if name not in contents:
                raise RequestError(f"{self.key}: {archive} lacks {self.folder}/{name}", self.hint)
        return contents


class Cifar100(Cifar10):
    """60,000 photographs of 100 kinds of things, 32 x 32, colour, with the fine labels.

    Looks for root/cifar-100-python/, then root/cifar-100-python.tar.gz, then both in root/cifar100/; otherwise as
    :class:`Cifar10`.
    """

    name = "cifar100"
    size = "169 MB"
    url = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    folder = "cifar-100-python"
    archive = "cifar-100-python.tar.gz"
    archive_md5 = "eb9058c3a382ffc7106e4002c42a8d85"
    train_files: ClassVar[dict[str, str]] = {"train": "16019d7e3df5f24257cddd939b257f8d"}
    test_files: ClassVar[dict[str, str]] = {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}
    names_file: ClassVar[dict[str, str]] = {"meta": "7973b15100ade9c7d40fb424638fde48"}
    names_key = "fine_label_names"
    labels_key = "fine_labels"

    def facts(self) -> Facts:
        """Returns the published numbers."""
        return Facts(100, (3, 32, 32), 50000, 10000, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
