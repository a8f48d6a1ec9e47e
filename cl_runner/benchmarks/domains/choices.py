"""One domain of a stream as a user asks for it: a name of the catalogue, or class folders of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cl_runner.benchmarks.domains.catalogue import CATALOGUE, domain_facts
from cl_runner.benchmarks.domains.prompts import check_template
from cl_runner.benchmarks.sources.dataset import MissingData
from cl_runner.errors import RequestError, nearest, shown

if TYPE_CHECKING:
    from cl_runner.benchmarks.domains.domain import Domain

MOST_CLASSES = 1_000_000
KEYS = ("name", "root", "prompt", "names", "n_classes")


@dataclass(frozen=True)
class ChoiceFacts:
    """What is known of a domain before its images are opened.

    Attributes:
        train, test: images of each class, int64; shared out evenly where only their sum is known.
        class_names: by label; empty where only the files say them.
    """

    train: np.ndarray
    test: np.ndarray
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """A domain to open.

    Attributes:
        name: of the catalogue, or the user's.
        templates: prompts with one {}.
        split: a split file; None: the one in the domain's folder, or the official split.
        root: of the user's class folders; None for a domain of the catalogue.
        names: the classes' names, by folder or in order; None: the folders'.
        n_classes: stands in for a folder that is not there, in `mode=plan`.
    """

    name: str
    templates: tuple[str, ...]
    split: Path | None = None
    root: Path | None = None
    names: Any = None
    n_classes: int | None = None

    def facts(self, root: Path, opened: Callable[[], Domain]) -> ChoiceFacts:
        """Counts and names as the files and the split say them.

        Where a domain of the catalogue has no files here, those of the user's split file, else the catalogue's.

        Args:
            root: data_root.
            opened: opens the domain, or returns it where that was done before.

        Raises:
            RequestError: files are damaged, a split does not fit, or the user's own folders are missing.
        """
        from cl_runner.benchmarks.domains.layouts import is_packed

        if self.root is not None:
            if self.n_classes is None or self.root.is_dir():
                found = _of(opened())
                if self.n_classes not in (None, len(found.train)):
                    raise RequestError(
                        f"benchmark.domains.{self.name}.n_classes={self.n_classes}: {self.root} holds "
                        f"{len(found.train)} classes",
                        "drop it; it stands in for a folder that is not there",
                    )
                return found
            return ChoiceFacts(_even(0, self.n_classes), _even(0, self.n_classes))
        if self.split is not None or not is_packed(self.name, root):  # planning unpacks nothing
            with suppress(MissingData):
                return _of(opened())
        return self._without_files()

    def _without_files(self) -> ChoiceFacts:
        """What the user's split file says, else the catalogue."""
        from cl_runner.benchmarks.domains.splits import check_listing, read_split

        if self.split is None:
            known = domain_facts(self.name)
            train, test = (_even(count, known.n_classes) for count in (known.n_train, known.n_test))
            return ChoiceFacts(train, test, known.class_names or ())
        key = f"benchmark.splits.{self.name}"
        listing = read_split(self.split, key)
        check_listing(listing, key)
        train, test = (
            np.bincount([label for _, label in items], minlength=len(listing.names))
            for items in (listing.train, listing.test)
        )
        return ChoiceFacts(train, test, listing.names)

    def open(self, root: Path, split_seed: int) -> Domain:
        """Finds the files and the parts; see `Domain`."""
        from dataclasses import replace

        from cl_runner.benchmarks.domains.layouts import open_domain
        from cl_runner.benchmarks.domains.own import folder_domain

        if self.root is None:
            return replace(open_domain(self.name, root, self.split, split_seed), templates=self.templates)
        domain = folder_domain(self.name, self.root, self.templates[0], self.names, split_seed)
        return replace(domain, templates=self.templates)


def choose(item: Any, key: str, splits: Mapping[str, Any], prompts: Mapping[str, Any]) -> Choice:
    """Reads one item of a list of domains.

    Args:
        item: a name, or {name, root, prompt, names}.
        key: the configuration key, for messages.
        splits: split files by domain.
        prompts: templates by domain.

    Raises:
        RequestError: the name is unknown, or a key is missing or wrong.
    """
    if isinstance(item, Mapping):
        return _own(item, key, prompts)
    if not isinstance(item, str) or item not in CATALOGUE:
        raise RequestError(
            f"{key}: there is no domain '{shown(item)}'",
            f"{nearest(str(item), tuple(CATALOGUE))}; class folders of your own: {{name: mine, root: FOLDER, "
            "prompt: 'a photo of a {}.'}",
        )
    split = splits.get(item)
    if not isinstance(split, str | None):
        raise RequestError(f"benchmark.splits.{item}={shown(split)} is not possible", "the path of a split file")
    templates = _templates(prompts.get(item, CATALOGUE[item].template), f"benchmark.prompts.{item}")
    return Choice(str(item), templates, None if split is None else Path(split).expanduser())


def _own(item: Mapping[str, Any], key: str, prompts: Mapping[str, Any]) -> Choice:
    name = str(item.get("name") or "")
    for found in item:
        if found not in KEYS:
            raise RequestError(f"{key}: {name or 'a domain'} has no key '{found}'", nearest(str(found), KEYS))
    if not name or not item.get("root"):
        raise RequestError(
            f"{key}: {shown(dict(item))} has no {'name' if not name else 'root'}",
            "class folders of your own: {name: mine, root: FOLDER, prompt: 'a photo of a {}.'}",
        )
    if name in CATALOGUE:
        raise RequestError(f"{key}: {name} is a domain of the catalogue", "give your folders another name")
    given = item.get("prompt")
    prompt = prompts.get(name, "a photo of a {}." if given is None else given)
    templates = _templates(prompt, f"{key}: the prompt of {name}")
    root, count, names = Path(str(item["root"])).expanduser(), item.get("n_classes"), item.get("names")
    if count is not None and not (type(count) is int and 1 <= count <= MOST_CLASSES):
        raise RequestError(
            f"{key}: n_classes={shown(count)} of {name} is not possible", f"a whole number from 1 to {MOST_CLASSES}"
        )
    if not isinstance(names, Mapping | list | tuple | None):
        raise RequestError(f"{key}: names={shown(names)} of {name} is not possible", "{FOLDER: NAME}, or a list")
    return Choice(name, templates, None, root, names, count)


def _of(domain: Domain) -> ChoiceFacts:
    names, labels = domain.class_names, domain.labels
    train, test = (np.bincount(labels[ids], minlength=len(names)) for ids in (domain.train, domain.test))
    return ChoiceFacts(train, test, names)


def _even(count: int, n_classes: int) -> np.ndarray:
    """Images of each class, int64 (n_classes,), that differ by one at most and sum to ``count``."""
    return np.full(n_classes, count // n_classes) + (np.arange(n_classes) < count % n_classes)


def _templates(given: str | Sequence[str], key: str) -> tuple[str, ...]:
    if not isinstance(given, str | list | tuple):
        raise RequestError(f"{key}: {shown(given)} is no prompt", "for example 'a photo of a {}.'")
    templates = (given,) if isinstance(given, str) else tuple(given)
    if not templates:
        raise RequestError(f"{key}: there is no prompt", "for example 'a photo of a {}.'")
    return tuple(check_template(str(template), key) for template in templates)
