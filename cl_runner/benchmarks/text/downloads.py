"""Reviews that are not on this machine: taken from the Hugging Face hub through the datasets library, if it is here."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cl_runner.benchmarks.sources.dataset import MissingData, Progress, Say
from cl_runner.benchmarks.text.catalogue import REVIEWS, Reviews
from cl_runner.errors import shown
from cl_runner.optional import library

PARTS = ("train", "test")


def missing_reviews(base: Path) -> list[tuple[Reviews, str]]:
    """Domains and parts whose files are not there."""
    return [(domain, part) for domain in REVIEWS for part in PARTS if domain.find(base, part) is None]


def find_reviews(
    base: Path, key: str, say: Say = lambda line: None, progress: Progress | None = None
) -> dict[tuple[str, str], Path]:
    """Files by domain and part; what is missing is fetched whole into ``base/text`` and stays there.

    Args:
        base: folder that holds the files, or `text` with them.
        key: the configuration key that names it.
        say: takes a line about what is being fetched.
        progress: called as (texts, texts in all) while a file is written.

    Raises:
        MissingData: files are missing and cannot be fetched; the hint says which ones to put where.
    """
    for domain, part in missing_reviews(base):
        place = base / "text" / f"{domain.stem}_{part}.jsonl.gz"
        say(f"{domain.name}: {part} comes from {domain.dataset} on the Hugging Face hub, into {place}")
        try:
            _write(place, _load(domain.dataset, part), progress)
        except ImportError as error:
            raise absent(base, key, "the datasets library is not installed") from error
        except Exception as error:  # no network, no rights, no space: the library raises whatever it met
            raise absent(base, key, f"{domain.dataset} could not be fetched: {shown(error, 150)}") from error
    found = {(domain.name, part): domain.find(base, part) for domain in REVIEWS for part in PARTS}
    return {which: place for which, place in found.items() if place is not None}


def absent(base: Path, key: str, reason: str) -> MissingData:
    """The refusal for files that are not there: which ones, why they were not fetched, what to put where."""
    names = ", ".join(f"{domain.stem}_{part}.jsonl" for domain, part in missing_reviews(base))
    return MissingData(
        f"{key}: {base / 'text'} lacks {names}, and {reason}",
        'put them there, a line {"text": ...}, also as .jsonl.gz; or where there is a network, with '
        f"`pip install 'cl-runner[text]'`: `cl-data prepare imdb_yelp --data-root {base}`",
    )


def _load(dataset: str, part: str) -> Any:
    load_dataset = library("datasets", "benchmark=imdb_yelp", "text").load_dataset
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:  # where it is set the library reads what it downloaded before
        _knock(constants.ENDPOINT)
    return load_dataset(dataset, split=part)


def _knock(address: str) -> None:
    """Raises OSError where nobody answers; the library itself would try for half a minute."""
    with contextlib.suppress(HTTPError), urlopen(Request(address, method="HEAD"), timeout=10):  # an answer all the same
        return


def _write(place: Path, rows: Any, progress: Progress | None) -> None:
    """Writes JSON lines beside the place and renames: nobody takes a half of them for all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".new-{place.name}-", dir=place.parent)
    try:
        with os.fdopen(handle, "wb") as raw, gzip.open(raw, "wt", compresslevel=3, encoding="utf-8") as stream:
            for index, text in enumerate(rows["text"]):
                stream.write(json.dumps({"text": text}) + "\n")
                if progress and index % 10_000 == 0:
                    progress(index, len(rows))
        Path(aside).replace(place)
    finally:
        with contextlib.suppress(FileNotFoundError):  # it was renamed
            Path(aside).unlink()
