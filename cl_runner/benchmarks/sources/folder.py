"""Any tree of class folders with a train and a test part, and the decoding of image files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image

from cl_runner.benchmarks.bad_samples import OR_SKIP, BadSample, undecodable
from cl_runner.benchmarks.sources.source import Facts, ImageData, MissingData, Progress, Source, parted, unreadable
from cl_runner.errors import RequestError

EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".gif"])
TEST_NAMES = ("test", "val", "valid", "validation")
_CHUNK = 256
_WORTH_A_THREAD = 16_384  # bytes; smaller files are mostly Python work, on which threads wait for each other

Listed = tuple[list[Path], np.ndarray]
"""Files and their labels, (N,)."""


class ImageFolder(Source):
    """A tree root/train/<class>/* and root/test/<class>/* of image files of any size.

    Where root/test is missing, root/val, root/valid or root/validation (the first that exists) is the test part.
    Classes are the folders in alphabetical order, the same in both parts. Names that start with a dot and files with
    other than an image's extension are passed over. Images become RGB, their shortest side is resized to ``image_size``
    (bilinear, antialiased) and the centre is cut out; an image that has that size already keeps its pixels.

    One file that does not decode completely (unless ``on_bad_sample`` is skip), a class without images or with images
    in one part only: RequestError.

    Args:
        root: the folder that holds train and test; an archive has to be unpacked first.
        image_size: height and width of the images given, in pixels.
    """

    name = "folder"
    key = "benchmark.root"
    needs = "train/<class>/* and test/<class>/*"
    size = "yours"
    licence = "yours"
    origin = "any tree of class folders"

    def __init__(self, *, root: Path, image_size: int = 32) -> None:
        self.root = Path(root).expanduser()
        self.image_size = image_size

    def facts(self) -> Facts:
        """Counts the files without opening any; mean 0.5 and deviation 0.25 a channel stand for every tree."""
        classes, train, test = self._scan()
        shape = (3, self.image_size, self.image_size)
        return Facts(len(classes), shape, len(train[0]), len(test[0]), (0.5,) * 3, (0.25,) * 3)

    def find(self) -> str:
        """Returns the folder, once its train and test parts exist."""
        self._parts()
        return str(self.root)

    def reads(self) -> list[Path] | None:
        """Returns the folders of the train and the test part."""
        return list(self._parts())

    def verify(self, progress: Progress | None = None) -> str:
        """Decodes every file."""
        classes, (train, _), (test, _) = self._scan()
        decode_all(train + test, self.image_size, key=self.key, keep=False, progress=progress)
        return f"folder is ready: {len(classes)} classes, {len(train)} + {len(test)} images in {self.root}, all decode"

    def load(self, progress: Progress | None = None) -> ImageData:
        """Returns images of shape (N, image_size, image_size, 3)."""
        classes, (train, train_labels), (test, test_labels) = self._scan()
        bad = self.passed_over()
        images = decode_all(train + test, self.image_size, key=self.key, progress=progress, bad=bad)
        return parted(images, np.concatenate([train_labels, test_labels]), len(train), classes, bad, str(self.root))

    def amount(self) -> tuple[str, str]:
        """Returns that this is the user's business."""
        return "any", "any"

    def _parts(self) -> tuple[Path, Path]:
        """Returns the folders of the train and the test part."""
        return find_parts(self.root, self.key)

    def _scan(self) -> tuple[tuple[str, ...], Listed, Listed]:
        """Returns the class names, and for each part the files and their labels."""
        if self.image_size < 1:
            raise RequestError(f"benchmark.image_size: {self.image_size} is no size", "a whole number from 1 on")
        train, test = self._parts()
        names = class_folders((train, test), self.key)
        return names, list_part(train, names, self.key), list_part(test, names, self.key)


def find_parts(root: Path, key: str) -> tuple[Path, Path]:
    """Returns the folders of the train and the test part below ``root``; raises RequestError that names ``key``."""
    hint = f"set {key} to a folder that holds train/<class>/*.jpg and test/<class>/*.jpg"
    if root.is_file():
        if root.name.lower().endswith((".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip")):
            hint = f"unpack it and set {key} to the folder that holds train/ and test/"
        raise RequestError(f"{key}: {root} is a file, not a folder", hint)
    if not root.is_dir():
        raise MissingData(f"{key}: the folder {root} does not exist", hint)
    train = root / "train"
    test = next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
    if not train.is_dir() or test is None:
        lacking = "train" if not train.is_dir() else "test"
        deeper = next((path for path in entries_of(root, key) if (path / "train").is_dir()), None)
        if deeper is not None:
            hint = f"did you mean {key}={deeper}?"
        raise MissingData(f"{key}: {root} has no folder '{lacking}'", hint)
    return train, test


def class_folders(parts: Sequence[Path], key: str) -> tuple[str, ...]:
    """Returns the names of the class folders, sorted; raises RequestError unless all parts hold the same ones."""
    classes = {part: {path.name for path in entries_of(part, key) if path.is_dir()} for part in parts}
    for part in parts:
        if not classes[part]:
            raise RequestError(f"{key}: {part} holds no class folders", f"place images in {part}/<class>/")
    for part, other in permutations(parts, 2):
        if odd := sorted(classes[part] - classes[other]):
            message = f"{key}: {part} has the class folder '{odd[0]}' that {other} has not"
            more = f" ({len(odd)} such classes)" if len(odd) > 1 else ""
            raise RequestError(message + more, "both parts need the same class folders")
    return tuple(sorted(classes[parts[0]]))


def list_part(part: Path, names: Sequence[str], key: str) -> Listed:
    """Returns the image files of a part, class by class in order of their names, with labels (N,)."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        entries = entries_of(part / name, key)
        images = [path for path in entries if path.suffix.lower() in EXTENSIONS]
        if not images:
            found = f"{len(entries)} others such as {entries[0].name}" if entries else "an empty folder"
            message = f"{key}: {part / name} holds no image files, found {found}"
            raise RequestError(message, f"image files end in {' '.join(sorted(EXTENSIONS))}")
        files += images
        labels += [label] * len(images)
    return files, np.array(labels, dtype=np.int64)


def entries_of(folder: Path, key: str) -> list[Path]:
    """Returns what a folder holds, sorted by name, without hidden entries."""
    try:
        with os.scandir(folder) as entries:
            return [folder / name for name in sorted(entry.name for entry in entries) if not name.startswith(".")]
    except OSError as error:
        raise unreadable(folder, key, error) from error


def decode(path: Path, image_size: int, key: str) -> np.ndarray:
    """Returns one image file as uint8, (image_size, image_size, 3): RGB, resized, the centre.

    Raises RequestError that names the file unless all of it decodes.
    """
    try:
        with Image.open(path) as image:
            rgb = _to_rgb(image)
        shortest = min(rgb.size)
        if rgb.size != (image_size, image_size):
            # as torchvision's Resize and CenterCrop round
            width, height = (int(image_size * side / shortest) for side in rgb.size)
            rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
            left, top = round((width - image_size) / 2), round((height - image_size) / 2)
            rgb = rgb.crop((left, top, left + image_size, top + image_size))
        return np.asarray(rgb)
    except Exception as error:  # Pillow's plugins raise whatever they stumble over
        raise undecodable(path, key, error, OR_SKIP) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode; Pillow alone would clip deeper grey levels to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no defined range; 8 or 16 bits a channel do")
    return image.convert("RGB")


def decode_all(
    paths: Sequence[Path],
    image_size: int,
    *,
    key: str,
    keep: bool = True,
    progress: Progress | None = None,
    bad: dict[int, BadSample] | None = None,
) -> np.ndarray:
    """Decodes files, large ones on all cores; returns uint8, (N, image_size, image_size, 3), or N = 0 unless ``keep``.

    The first file in order that does not decode is the one named in the RequestError. With ``bad`` such files go there
    by their place instead, and what stands in their rows has no meaning.
    """
    try:
        images = np.empty((len(paths) if keep else 0, image_size, image_size, 3), dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        size = f"{len(paths) * image_size**2 * 3 / 1e9:.1f} GB"
        message = f"benchmark.image_size: {len(paths)} images of {image_size} x {image_size} take {size} of memory"
        raise RequestError(message, "a smaller size") from error

    def decode_chunk(start: int) -> int:
        chunk = paths[start : start + _CHUNK]
        for index, path in enumerate(chunk, start=start):
            try:
                image = decode(path, image_size, key)
            except BadSample as error:
                if bad is None:
                    raise
                bad[index] = error
                continue
            if keep:
                images[index] = image
        return len(chunk)

    done = 0
    pool = ThreadPoolExecutor(max_workers=_workers(paths))
    try:
        for count in pool.map(decode_chunk, range(0, len(paths), _CHUNK)):
            done += count
            if progress:
                progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def _workers(paths: Sequence[Path]) -> int:
    """Returns how many threads decode these files the fastest, from the sizes of a few of them."""
    sample = [path.stat().st_size for path in paths[:: max(1, len(paths) // 16)] if path.is_file()]
    large = bool(sample) and sum(sample) / len(sample) > _WORTH_A_THREAD
    return min(os.cpu_count() or 1, 16) if large else 1
