"""The published text domains: what they are called, where their files lie, and how they are scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOKEN_ACCURACY = "token_accuracy"


@dataclass(frozen=True)
class Reviews:
    """A domain of `imdb_yelp`.

    Attributes:
        name: its column.
        stem: its files are called STEM_train.jsonl and STEM_test.jsonl, each also with .gz.
        dataset: its name on the Hugging Face hub, whose column `text` is read.
        n_train, n_test: texts that it has there.
    """

    name: str
    stem: str
    dataset: str
    n_train: int
    n_test: int

    def candidates(self, base: Path, part: str) -> Iterator[Path]:
        """Where a part's file may lie below ``base``."""
        for folder in (base / "text", base):
            for suffix in (".jsonl", ".jsonl.gz"):
                yield folder / f"{self.stem}_{part}{suffix}"

    def find(self, base: Path, part: str) -> Path | None:
        """A part's file; None where there is none."""
        return next((place for place in self.candidates(base, part) if place.is_file()), None)


REVIEWS = (
    Reviews("imdb", "imdb", "stanfordnlp/imdb", 25_000, 25_000),
    Reviews("yelp", "yelp_polarity", "fancyzhx/yelp_polarity", 560_000, 38_000),
)

TRACE = {  # in the published order; what each is scored by
    "C-STANCE": "exact_match",
    "FOMC": "exact_match",
    "MeetingBank": "rouge_l",
    "Py150": "edit_similarity",
    "ScienceQA": "first_character",
    "NumGLUE-cm": "exact_match",
    "NumGLUE-ds": "exact_match",
    "20Minuten": "sari",
}
TRACE_TRAIN = 5000  # training examples of every task, as published
TRACE_PARTS = {"train": "train.json", "validation": "eval.json", "test": "test.json"}
TRACE_ARCHIVE = "TRACE-Benchmark.zip"
TRACE_ADDRESS = (
    "drive.google.com/file/d/1S0SmU0WEw5okW_XvP2Ns0URflNzZq6sV (77 MB, linked by github.com/BeyonderXX/TRACE)"
)
_VARIANTS = tuple(
    f"LLM-CL-Benchmark_{size}" for size in (5000, 1000, 500)
)  # folders of the archive; the first is TRACE


def trace_folders(base: Path) -> Iterator[Path]:
    """Where the folders of TRACE's tasks may lie below ``base``: there, in `trace`, or as the archive unpacks."""
    for outer in (base / "trace", base):
        yield outer
        for inner in (outer, outer / "TRACE-Benchmark"):
            yield from (inner / variant for variant in _VARIANTS)


def find_trace(base: Path) -> Path | None:
    """The first such folder that holds a task; None where there is none."""
    return next((place for place in trace_folders(base) if any((place / task).is_dir() for task in TRACE)), None)
