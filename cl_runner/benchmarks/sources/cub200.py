"""CUB-200-2011, birds, with the official split."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from cl_runner.benchmarks.sources.folder import decode_all
from cl_runner.benchmarks.sources.source import ArchiveSource, Facts, ImageData, Progress, parted, unpack, unreadable
from cl_runner.errors import RequestError


class Cub200(ArchiveSource):
    """11,788 photographs of 200 species of birds, of any size; the shortest side is resized, the centre cut out.

    Looks for root/CUB_200_2011/, then root/CUB_200_2011.tgz (which loading unpacks beside itself), then both in
    root/cub200/. The split is that of train_test_split.txt, a label is the official class id minus 1. The lists are
    checked against the official counts and every image has to decode completely; the images have no checksums of their
    own, the archive has.

    Source: C. Wah et al., The Caltech-UCSD Birds-200-2011 dataset, CNS-TR-2011-001; mean and deviation are ImageNet's,
    as the networks used here were pretrained on it.

    Args:
        root: the data folder of the user.
        image_size: height and width of the images given, in pixels.
    """

    name = "cub200"
    size = "1.2 GB"
    licence = "non-commercial research and education"
    origin = "data.caltech.edu/records/65de6-vp158"
    url = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
    folder = "CUB_200_2011"
    archive = "CUB_200_2011.tgz"
    archive_md5 = "97eceeb196236b17998738112f37df78"
    note = "Avalanche never downloads CUB-200: "
    counts = (200, 5994, 5794)  # classes, train images, test images

    def __init__(self, *, root: Path, image_size: int = 224) -> None:
        super().__init__(root=root)
        self.image_size = image_size

    def facts(self) -> Facts:
        """Returns the published numbers."""
        n_classes, n_train, n_test = self.counts
        shape = (3, self.image_size, self.image_size)
        return Facts(n_classes, shape, n_train, n_test, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def verify(self, progress: Progress | None = None) -> str:
        """Checks the archive's md5, or the lists of the folder and that every image decodes."""
        place = self.place()
        if place.is_file():
            self.check_archive(place)
            return f"cub200 is ready: {place}, md5 verified"
        _, paths, _, _ = self._lists(place)
        decode_all(paths, 32, key=self.key, keep=False, progress=progress)
        return f"cub200 is ready: {len(paths)} images in {place}, all decode"

    def load(self, progress: Progress | None = None) -> ImageData:
        """Returns images of shape (N, image_size, image_size, 3): 1.8 GB at the default size."""
        if self.image_size < 1:
            raise RequestError(f"benchmark.image_size: {self.image_size} is no size", "a whole number from 1 on")
        place = self.place()
        if place.is_file():
            self.check_archive(place)
            place = unpack(place, self.folder, self.key)
        names, paths, labels, n_train = self._lists(place)
        bad = self.passed_over()
        images = decode_all(paths, self.image_size, key=self.key, progress=progress, bad=bad)
        return parted(images, labels, n_train, names, bad, str(place))

    def _lists(self, place: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray, int]:
        """Returns class names, image files and labels (N,) with the train part first, and the length of that part."""
        classes = self._table(place / "classes.txt")
        files = self._table(place / "images.txt")
        label_of = self._table(place / "image_class_labels.txt")
        is_train = self._table(place / "train_test_split.txt")
        for table, name in ((label_of, "image_class_labels.txt"), (is_train, "train_test_split.txt")):
            if table.keys() != files.keys():
                raise self._damaged(place, f"{name} and images.txt list different images")
        for image, label in label_of.items():
            if not label.isdecimal() or int(label) not in classes:
                raise self._damaged(place, f"image_class_labels.txt gives image {image} the class {label}")
            if is_train[image] not in ("0", "1"):
                raise self._damaged(place, f"train_test_split.txt gives image {image} the part {is_train[image]}")
        train = [image for image in sorted(files) if is_train[image] == "1"]
        test = [image for image in sorted(files) if is_train[image] == "0"]
        found = (len(classes), len(train), len(test))
        if found != self.counts or sorted(classes) != list(range(1, len(classes) + 1)):
            expected = "{} classes, {} train and {} test images".format(*self.counts)
            raise self._damaged(place, "the lists hold {}, {} and {}".format(*found) + f", not {expected}")
        paths = [place / "images" / PurePosixPath(files[image]) for image in train + test]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise self._damaged(place, f"{len(missing)} of {len(paths)} images are missing, first {missing[0]}")
        labels = np.array([int(label_of[image]) - 1 for image in train + test], dtype=np.int64)
        return tuple(classes[label] for label in sorted(classes)), paths, labels, len(train)

    def _table(self, path: Path) -> dict[int, str]:
        """Reads lines of a number, a space and a value."""
        table = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise self._damaged(path.parent, f"{path.name} is missing") from error
        except OSError as error:
            raise unreadable(path, self.key, error) from error
        except UnicodeDecodeError as error:
            raise self._damaged(path.parent, f"{path.name} is no text") from error
        for number, line in enumerate(lines, start=1):
            first, _, second = line.strip().partition(" ")
            if not first.isdecimal() or not second:
                raise self._damaged(path.parent, f"line {number} of {path.name} is no number and value: {line[:40]!r}")
            table[int(first)] = second
        return table

    def _damaged(self, place: Path, what: str) -> RequestError:
        return RequestError(f"{self.key}: {place} is damaged: {what}", f"remove {place}; {self.hint}")
