"""The text domains as cl-data sees them: looked for, read once to see that they are whole, fetched."""

from __future__ import annotations

from pathlib import Path

from cl_runner.benchmarks.sources.dataset import Dataset, MissingData, Progress, Say
from cl_runner.benchmarks.text.catalogue import (
    REVIEWS,
    TRACE,
    TRACE_ADDRESS,
    TRACE_ARCHIVE,
    TRACE_PARTS,
    TRACE_TRAIN,
    find_trace,
)
from cl_runner.benchmarks.text.downloads import PARTS, absent, find_reviews, missing_reviews
from cl_runner.benchmarks.text.files import ANSWER, TEXT, TextFile


class ImdbYelpSource(Dataset):
    """The reviews of `benchmark=imdb_yelp`.

    Args:
        root: the data folder of the user; looked through, then its subfolder `text`.
    """

    name = "imdb_yelp"
    needs = "text/{imdb,yelp_polarity}_{train,test}.jsonl"
    size = "0.3 GB"
    licence = "research (IMDb), Yelp's terms"
    origin = "huggingface.co: " + ", ".join(domain.dataset for domain in REVIEWS)

    def __init__(self, *, root: Path) -> None:
        self.root = Path(root).expanduser()

    def amount(self) -> tuple[str, str]:
        """Returns the number of domains, and of their texts as published."""
        return "2 domains", "585,000 + 63,000"

    def find(self) -> str:
        """Returns the folder of the files; raises MissingData that names those that are not there."""
        if missing_reviews(self.root):
            raise absent(self.root, self.key, "`check` fetches nothing")
        place = REVIEWS[0].find(self.root, PARTS[0])
        assert place is not None
        return str(place.parent)

    def verify(self, progress: Progress | None = None) -> str:
        """Reads every text of the four files.

        Raises:
            RequestError: a file is missing or damaged, or a text in it cannot be used; the message names the line.
        """
        folder, counts = self.find(), []
        for domain in REVIEWS:
            places = [domain.find(self.root, part) for part in PARTS]
            sizes = [TextFile(place, self.key, TEXT).check(progress) for place in places if place is not None]
            counts.append(f"{domain.name} {' + '.join(f'{size:,}' for size in sizes)}")
        return f"{self.name} is ready: {', '.join(counts)} texts in {folder}"

    def prepare(self, say: Say = lambda line: None, progress: Progress | None = None) -> None:
        """Fetches the files that are not there through the datasets library, then verifies all."""
        find_reviews(self.root, self.key, say, progress)
        say(self.verify(progress))


class TraceSource(Dataset):
    """The eight tasks of `benchmark=trace`.

    Args:
        root: the data folder of the user; looked through, then its subfolder `trace`.
    """

    name = "trace"
    needs = "trace/TASK/{train,eval,test}.json"
    size = "77 MB"
    licence = "that of each task"
    origin = "github.com/BeyonderXX/TRACE"

    def __init__(self, *, root: Path) -> None:
        self.root = Path(root).expanduser()

    @property
    def hint(self) -> str:
        """What would work; the archive comes without a checksum from its authors, so nothing here fetches it."""
        return f"download {TRACE_ARCHIVE} by hand from {TRACE_ADDRESS} and unpack it into {self.root / 'trace'}"

    def amount(self) -> tuple[str, str]:
        """Returns the number of tasks, and of the examples that each trains on."""
        return f"{len(TRACE)} tasks", f"{len(TRACE)} x {TRACE_TRAIN:,} to train"

    def find(self) -> str:
        """Returns the folder of the tasks; raises MissingData."""
        return str(self._folder())

    def verify(self, progress: Progress | None = None) -> str:
        """Reads every example of every task.

        Raises:
            RequestError: a task or a file is missing or damaged, or an example cannot be used.
        """
        folder, counts = self._folder(), []
        for task in TRACE:
            sizes = []
            for file in TRACE_PARTS.values():
                place = folder / task / file
                if not place.is_file():
                    raise MissingData(f"{self.key}: {place} is not there", self.hint)
                sizes.append(TextFile(place, self.key, ANSWER).check(progress))
            counts.append(f"{task} {' + '.join(f'{size:,}' for size in sizes)}")
        return f"{self.name} is ready: {', '.join(counts)} examples in {folder}"

    def _folder(self) -> Path:
        folder = find_trace(self.root)
        if folder is None:
            reason = f"neither {self.root / 'trace'} nor {self.root} holds a task of TRACE"
            raise MissingData(f"{self.key}: {reason}", self.hint)
        return folder
