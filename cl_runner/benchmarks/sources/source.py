"""The contract of an image data source, and what the sources share.

A source turns files under a folder into uint8 arrays and official labels. Nothing here imports torch. Every refusal is
a :class:`~cl_runner.errors.RequestError` whose message names the configuration key and the file, and whose hint says
which file to place where. Checksums come before contents: no archive is unpacked and no pickle opened before its md5
matched.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cl_runner.benchmarks.bad_samples import SKIP, STOP, BadSample, still_there
from cl_runner.benchmarks.sources.dataset import Dataset, MissingData, Progress, Say
from cl_runner.downloads import download
from cl_runner.errors import RequestError
from cl_runner.unpacking import unpack

if TYPE_CHECKING:
    import numpy as np

_CHUNK = 1 << 20


@dataclass(frozen=True)
class ImageData:
    """Every image of a dataset, decoded.

    Images are uint8, (N, H, W, C); labels int64, (N,), in 0..n_classes-1: the dataset's official label ids, of which
    ``class_names`` holds the names. ``skipped`` has a line for each image that could not be read and was left out.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """The labels of :class:`ImageData` without its images: int64, (N,), and the names by label."""

    train: np.ndarray
    test: np.ndarray
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What is known of a dataset before its images are read.

    ``image_shape`` is (C, H, W) after resizing; ``mean`` and ``std`` are per channel, of pixel values in [0, 1].
    """

    n_classes: int
    image_shape: tuple[int, int, int]
    n_train: int
    n_test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Source(Dataset):
    """A dataset of images with a train and a test part, decoded into arrays. Making one touches no file.

    ``on_bad_sample`` may be set to skip before loading: sources that read image files then go without those that
    cannot be read, and say so in what they load.
    """

    on_bad_sample: str = STOP

    @abstractmethod
    def facts(self) -> Facts:
        """Returns the numbers that planning needs."""

    @abstractmethod
    def load(self, progress: Progress | None = None) -> ImageData:
        """Returns every image, verified; raises RequestError rather than return damaged data."""

    def reads(self) -> list[Path] | None:
        """Returns the files and folders that :meth:`load` reads: while they stay the same, so does what it returns.

        None: that is not known, and every run loads anew. Raises MissingData.
        """
        return None

    def amount(self) -> tuple[str, str]:
        """Returns the published numbers."""
        facts = self.facts()
        return str(facts.n_classes), f"{facts.n_train:,} + {facts.n_test:,}"

    def passed_over(self) -> dict[int, BadSample] | None:
        """Returns where images go that cannot be read; None where they are refused."""
        return {} if self.on_bad_sample == SKIP else None


class ArchiveSource(Source):
    """A dataset that comes as one archive: ``root/folder``, or ``root/archive``, or both one folder deeper.

    Args:
        root: the data folder of the user; looked through, then its subfolder named after the dataset.
    """

    folder: ClassVar[str]
    archive: ClassVar[str]
    archive_md5: ClassVar[str]
    url: ClassVar[str]
    note: ClassVar[str] = ""

    def __init__(self, *, root: Path) -> None:
        self.root = Path(root).expanduser()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.needs = cls.archive

    @property
    def hint(self) -> str:
        """What would work, on one line."""
        return (
            f"{self.note}run `cl-data prepare {self.name} --data-root {self.root}`, or place {self.archive} "
            f"(md5 {self.archive_md5}) in {self.root}"
        )

    def place(self) -> Path:
        """Returns the unpacked folder, else the archive; raises MissingData."""
        for base in (self.root, self.root / self.name):
            if (base / self.folder).is_dir():
                return base / self.folder
            if (base / self.archive).is_file():
                return base / self.archive
        raise MissingData(f"{self.key}: {absence(self.root, f'{self.folder}/ nor {self.archive}')}", self.hint)

    def find(self) -> str:
        """Returns the unpacked folder's path, else the archive's."""
        return str(self.place())

    def reads(self) -> list[Path] | None:
        """Returns the unpacked folder, else the archive."""
        return [self.place()]

    def check_archive(self, archive: Path) -> None:
        """Raises RequestError unless ``archive`` is the official one."""
        check_md5(file_md5(archive, self.key), self.archive_md5, archive, self.key, f"remove it, then {self.hint}")

    def prepare(self, say: Say = lambda line: None, progress: Progress | None = None) -> None:
        """Downloads and unpacks the archive unless the data is there, then verifies."""
        try:
            place = self.place()
        except MissingData:
            place = self.root / self.archive
            say(f"downloading {self.url} to {place} ({self.size})")
            download(self.url, place, self.archive_md5, self.key, progress)
        if place.is_file() and os.access(place.parent, os.W_OK):
            say(f"verifying and unpacking {place}")
            self.check_archive(place)
            unpack(place, self.folder, self.key)
        say(self.verify(progress))


def parted(
    images: np.ndarray,
    labels: np.ndarray,
    n_train: int,
    names: tuple[str, ...],
    bad: dict[int, BadSample] | None,
    where: str,
) -> ImageData:
    """Returns images (N, H, W, C), of which the first ``n_train`` are for training, as two parts without the bad ones.

    Raises:
        RequestError: a class would lose its last training or test image.
    """
    if not bad:
        return ImageData(images[:n_train], labels[:n_train], images[n_train:], labels[n_train:], names)
    import numpy as np

    everything = np.arange(len(labels))
    kept = still_there(bad, labels, {"train": everything[:n_train], "test": everything[n_train:]}, names, where)
    train, test = kept["train"], kept["test"]
    skipped = tuple(bad[index].line for index in sorted(bad))
    return ImageData(images[train], labels[train], images[test], labels[test], names, skipped)


def absence(root: Path, wanted: str) -> str:
    """Returns what was found instead of ``wanted`` at ``root``."""
    if root.is_file():
        return f"{root} is a file, not a folder"
    if not root.is_dir():
        return f"the folder {root} does not exist"
    return f"{root} holds neither {wanted}"


def file_md5(path: Path, key: str) -> str:
    """Returns the md5 of a file as hexadecimal digits; raises RequestError where it cannot be read."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise unreadable(path, key, error) from error
    return digest.hexdigest()


def check_md5(found: str, expected: str, path: Path | str, key: str, hint: str) -> None:
    """Raises RequestError unless the two checksums agree."""
    if found != expected:
        raise RequestError(f"{key}: {path} is truncated or altered: md5 {found}, {expected} expected", hint)


def unreadable(path: Path, key: str, error: OSError) -> RequestError:
    """Returns the refusal for a file or folder that the system does not let us read."""
    return RequestError(f"{key}: cannot read {path}: {error.strerror or error}", "check that it exists and its rights")
