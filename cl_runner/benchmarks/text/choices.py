"""One domain of `text_domains` as a user asks for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_runner.benchmarks.sources.dataset import MissingData
from cl_runner.benchmarks.text.catalogue import TOKEN_ACCURACY
from cl_runner.benchmarks.text.files import ANSWER, PLAIN, TEXT, TextFile
from cl_runner.errors import RequestError, nearest, shown

KEY = "benchmark.domains"
KEYS = ("name", "train", "test", "metric")
EXAMPLE = "{name: mine, train: FILE.jsonl, test: FILE.jsonl}"


@dataclass(frozen=True)
class Choice:
    """A domain to read.

    Attributes:
        name: its column.
        train, test: files as the user wrote them; test None: a tenth of train.
        metric: None: what suits the kind of file.
    """

    name: str
    train: str
    test: str | None = None
    metric: str | None = None

    def file(self, part: str, bases: Sequence[Path]) -> TextFile | None:
        """A part's file, looked for in these folders; None where the domain has none.

        Raises:
            MissingData: it is in none of them.
        """
        said = self.train if part == "train" else self.test
        if said is None:
            return None
        path = Path(said).expanduser()
        places = [path] if path.is_absolute() else list(dict.fromkeys(base / path for base in bases))
        key = f"{KEY}: {part} of {self.name}"
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise MissingData(f"{key}: there is no {', nor '.join(map(str, places))}", "name a file that is there")
        return TextFile(found, key)

    def kind(self, bases: Sequence[Path]) -> str:
        """What the training file holds, as far as that can be said: one that is not there is taken for texts."""
        if self.metric not in (None, TOKEN_ACCURACY):
            return ANSWER
        if self.train.lower().removesuffix(".gz").endswith(PLAIN):
            return TEXT
        try:
            file = self.file("train", bases)
        except MissingData:
            return TEXT
        assert file is not None
        return file.first_kind()


def choose_all(domains: Sequence[Any]) -> list[Choice]:
    """Reads the list `benchmark.domains`.

    Raises:
        RequestError: it is empty, a domain has no name or no file, an unknown key or metric, or another's name.
    """
    if not domains:
        raise RequestError(f"{KEY} is empty: a stream needs a domain", f"add {EXAMPLE}")
    choices = [_choose(item) for item in domains]
    names = [choice.name for choice in choices]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise RequestError(f"{KEY} names {double} twice", "give every domain a name of its own")
    return choices


def _choose(item: Any) -> Choice:
    if not isinstance(item, Mapping):
        raise RequestError(f"{KEY}: {shown(item)} is no domain", f"a domain is {EXAMPLE}")
    for found in item:
        if found not in KEYS:
            raise RequestError(
                f"{KEY}: {shown(item.get('name') or 'a domain')} has no key '{found}'", nearest(str(found), KEYS)
            )
    for needed in ("name", "train"):
        if item.get(needed) in (None, ""):
            raise RequestError(f"{KEY}: {shown(dict(item))} has no {needed}", f"a domain is {EXAMPLE}")
    name = str(item["name"])
    if not re.fullmatch(r"\w[\w.+-]*", name) or name == "after_task":
        raise RequestError(
            f"{KEY}: the name '{shown(name)}' is no name of a column",
            "letters, digits, and after the first one also - + . _; and not after_task",
        )
    metric = item.get("metric")
    if metric is not None:
        _check_metric(str(metric), name)
    return Choice(name, str(item["train"]), *(None if item.get(key) is None else str(item[key]) for key in KEYS[2:]))


def _check_metric(metric: str, name: str) -> None:
    from cl_runner.scores import METRICS

    known = (TOKEN_ACCURACY, *METRICS)
    if metric not in known:
        raise RequestError(f"{KEY}: {name} has metric={shown(metric)}, which is not known", nearest(metric, known))
