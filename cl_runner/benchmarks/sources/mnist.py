"""MNIST from the four idx files, plain or gzipped, in torchvision's layout."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cl_runner.benchmarks.sources.source import (
    Facts,
    ImageData,
    Labels,
    MissingData,
    Progress,
    Say,
    Source,
    absence,
    check_md5,
    unreadable,
)
from cl_runner.downloads import download
from cl_runner.errors import RequestError


class IdxFile(NamedTuple):
    """An idx file: its array's shape, the md5 of the official .gz and that of its contents."""

    name: str
    shape: tuple[int, ...]
    packed_md5: str
    md5: str

    @property
    def header(self) -> bytes:
        """Two zero bytes, 8 for uint8, the number of dimensions, then each length as a big-endian 32-bit integer."""
        return bytes((0, 0, 8, len(self.shape))) + np.array(self.shape, ">u4").tobytes()


# The md5 of the .gz is torchvision's (0.26, datasets/mnist.py), the second that of what it unpacks to.
_TRAIN, _TEST = 60000, 10000
FILES = (
    IdxFile(
        name="train-images-idx3-ubyte",
        shape=(_TRAIN, 28, 28),
        packed_md5="f68b3c2dcbeaaa9fbdd348bbdeb94873",
        md5="6bbc9ace898e44ae57da46a324031adb",
    ),
    IdxFile(
        name="train-labels-idx1-ubyte",
        shape=(_TRAIN,),
        packed_md5="d53e105ee54ea40749a09fcbcd1e9432",
        md5="a25bea736e30d166cdddb491f175f624",
    ),
    IdxFile(
        name="t10k-images-idx3-ubyte",
        shape=(_TEST, 28, 28),
        packed_md5="9fb629c4189551a2d022fa330f9573f3",
        md5="2646ac647ad5339dbf082846283269ea",
    ),
    IdxFile(
        name="t10k-labels-idx1-ubyte",
        shape=(_TEST,),
        packed_md5="ec29112dd5afa0611ce80d1b7f02629c",
        md5="27ae3e4e09519cfbb04c329615203637",
    ),
)


class Mnist(Source):
    """70,000 handwritten digits, 28 x 28, grey.

    Looks in root/MNIST/raw, then in root/mnist/MNIST/raw and root/mnist, for each file plain or as .gz. What is checked
    is the content: exact length, idx header, md5. So a .gz packed again is as good as the official one, and a plain
    file with one changed byte is refused.

    Source: Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits, 1998.

    Args:
        root: the data folder of the user.
    """

    name = "mnist"
    needs = "MNIST/raw/*-ubyte.gz"
    size = "12 MB"
    licence = "CC BY-SA 3.0"
    origin = "yann.lecun.com/exdb/mnist"
    url = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    files = FILES

    def __init__(self, *, root: Path) -> None:
        self.root = Path(root).expanduser()

    def facts(self) -> Facts:
        """Returns the published numbers."""
        return Facts(10, (1, 28, 28), 60000, 10000, (0.1307,), (0.3081,))

    def find(self) -> str:
        """Returns the folder that holds all four files."""
        return str(self._place()[0])

    def reads(self) -> list[Path] | None:
        """Returns the four files."""
        place, _ = self._place()
        return [path for file in self.files if (path := _path(place, file)) is not None]

    def verify(self, progress: Progress | None = None) -> str:
        """Unpacks and checks the four files in memory."""
        place, _ = self._arrays(progress)
        return f"mnist is ready: {len(self.files)} files in {place}, contents verified by md5"

    def load(self, progress: Progress | None = None) -> ImageData:
        """Returns images of shape (N, 28, 28, 1)."""
        _, arrays = self._arrays(progress)
        train_images, train_labels, test_images, test_labels = arrays
        return ImageData(
            train_images[..., None],
            train_labels.astype(np.int64),
            test_images[..., None],
            test_labels.astype(np.int64),
            tuple(str(label) for label in range(10)),
        )

    def labels(self) -> Labels:
        """Returns the labels without reading an image."""
        place, _ = self._place()
        train, test = (self._read(place, file).astype(np.int64) for file in self.files if len(file.shape) == 1)
        return Labels(train, test, tuple(str(label) for label in range(10)))

    def checksums(self) -> tuple[str, ...]:
        """Returns the md5 of every file's content: what the pixels depend on."""
        return tuple(file.md5 for file in self.files)

    def prepare(self, say: Say = lambda line: None, progress: Progress | None = None) -> None:
        """Downloads the files that are missing (left as .gz, which is all that loading needs), then verifies."""
        place, missing = self._place(complete=False)
        for file in missing:
            say(f"downloading {self.url}{file.name}.gz to {place}")
            download(f"{self.url}{file.name}.gz", place / f"{file.name}.gz", file.packed_md5, self.key, progress)
        say(self.verify(progress))

    def _place(self, complete: bool = True) -> tuple[Path, list[IdxFile]]:
        """Returns the folder that holds the most of the files (the first of equals), and the files it lacks."""
        folders = (self.root / "MNIST" / "raw", self.root / "mnist" / "MNIST" / "raw", self.root / "mnist")
        lacking = {folder: [file for file in self.files if _path(folder, file) is None] for folder in folders}
        place = min(folders, key=lambda folder: len(lacking[folder]))
        missing = lacking[place]
        if missing and complete:
            if len(missing) < len(self.files):
                found = f"{place} lacks {', '.join(f'{file.name}[.gz]' for file in missing)}"
            else:
                found = absence(self.root, f"MNIST/raw/{missing[0].name}.gz nor it unpacked")
            names = ", ".join(f"{file.name}.gz (md5 {file.packed_md5})" for file in missing)
            hint = f"run `cl-data prepare mnist --data-root {self.root}`, or place in {place}: {names}"
            raise MissingData(f"{self.key}: {found}", hint)
        return place, missing

    def _arrays(self, progress: Progress | None) -> tuple[Path, list[np.ndarray]]:
        """Returns the folder and the four arrays, verified."""
        place, _ = self._place()
        arrays = []
        for index, file in enumerate(self.files, start=1):
            arrays.append(self._read(place, file))
            if progress:
                progress(index, len(self.files))
        return place, arrays

    def _read(self, place: Path, file: IdxFile) -> np.ndarray:
        """Returns one idx file as a uint8 array of its official shape."""
        path = _path(place, file)
        assert path is not None  # _place() found all of them
        hint = (
            f"remove {path}, then run `cl-data prepare mnist --data-root {self.root}`, or place "
            f"{file.name}.gz (md5 {file.packed_md5}) in {place}"
        )
        size = len(file.header) + int(np.prod(file.shape))
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
                content = stream.read(size + 1)  # one more than there should be: enough to see that it is too long
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise RequestError(f"{self.key}: {path} is truncated or no gzip file: {error}", hint) from error
        except OSError as error:
            raise unreadable(path, self.key, error) from error
        if len(content) != size:
            found = f"more than {size}" if len(content) > size else str(len(content))
            raise RequestError(f"{self.key}: {path} holds {found} bytes, {size} expected", hint)
        if not content.startswith(file.header):
            found = content[: len(file.header)].hex()
            message = f"{self.key}: {path} starts with {found}, not with the idx header {file.header.hex()}"
            raise RequestError(message, hint)
        check_md5(hashlib.md5(content, usedforsecurity=False).hexdigest(), file.md5, path, self.key, hint)
        return np.frombuffer(bytearray(content), np.uint8, offset=len(file.header)).reshape(file.shape)


def _path(folder: Path, file: IdxFile) -> Path | None:
    """Returns the path of a file, preferring the plain one, or None."""
    candidates = (folder / file.name, folder / f"{file.name}.gz")
    return next((path for path in candidates if path.is_file()), None)
