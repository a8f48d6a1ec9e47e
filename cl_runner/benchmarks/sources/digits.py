"""Scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels that are installed with it."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from cl_runner.benchmarks.sources.source import Facts, ImageData, Progress, Source

TEST_SHARE = 0.2


class Digits(Source):
    """The test set of the UCI Optical Recognition of Handwritten Digits data, as bundled with scikit-learn.

    Grey levels 0..16 become round(level * 255 / 16). The split is fixed: of each class the last 20 % (rounded) in file
    order are the test part, which keeps both parts in file order. No file of the user's and no network is needed.

    Source: E. Alpaydin, C. Kaynak, UCI Machine Learning Repository, 1998, doi 10.24432/C50P49.
    """

    name = "digits"
    size = "bundled"
    licence = "CC BY 4.0"
    origin = "scikit-learn"

    def facts(self) -> Facts:
        """Returns the sizes of the split, and mean and deviation of its train part."""
        return Facts(10, (1, 8, 8), 1438, 359, (0.3054,), (0.3754,))

    def find(self) -> str:
        """Returns that nothing needs to be found."""
        return "bundled with scikit-learn"

    def reads(self) -> list[Path] | None:
        """Returns no file: the digits are part of an installed package."""
        return []

    def verify(self, progress: Progress | None = None) -> str:
        """Returns that there is nothing to verify."""
        return "digits is bundled with scikit-learn: nothing to prepare"

    def load(self, progress: Progress | None = None) -> ImageData:
        """Returns images of shape (N, 8, 8, 1)."""
        levels, labels = _bundled()
        images = np.rint(levels * 255 / 16).astype(np.uint8)[..., None]
        is_test = np.zeros(len(labels), dtype=bool)
        for label in range(10):
            members = np.flatnonzero(labels == label)
            is_test[members[len(members) - round(TEST_SHARE * len(members)) :]] = True
        if progress:
            progress(len(labels), len(labels))
        names = tuple(str(label) for label in range(10))
        return ImageData(images[~is_test], labels[~is_test], images[is_test], labels[is_test], names)


def _bundled() -> tuple[np.ndarray, np.ndarray]:
    """Grey levels (N, 8, 8) and labels (N,), from the file itself: importing scikit-learn for it takes 0.3 s."""
    found = importlib.util.find_spec("sklearn")
    places = found.submodule_search_locations if found is not None else None
    file = Path(places[0], "datasets", "data", "digits.csv.gz") if places else None
    if file is not None and file.is_file():
        with gzip.open(file, "rt", encoding="ascii") as text:
            rows = np.array(text.read().replace("\n", ",").rstrip(",").split(","), dtype=np.float64).reshape(-1, 65)
        return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # which knows where another version keeps it

    digits = load_digits()
    return digits.images, digits.target.astype(np.int64)
