"""Streams of texts, a task a domain: IMDb and Yelp, TRACE, and files of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_runner.benchmarks.sources.dataset import MissingData
from cl_runner.benchmarks.text.benchmark import DomainFiles, Expected, Say, TextBenchmark
from cl_runner.benchmarks.text.catalogue import (
    REVIEWS,
    TRACE,
    TRACE_ADDRESS,
    TRACE_ARCHIVE,
    TRACE_PARTS,
    TRACE_TRAIN,
    find_trace,
)
from cl_runner.benchmarks.text.choices import Choice, choose_all
from cl_runner.benchmarks.text.files import ANSWER, TEXT, TextFile
from cl_runner.benchmarks.text.sequences import TRUNCATE, Lengths
from cl_runner.errors import RequestError, nearest, shown


class ImdbYelp(TextBenchmark):
    """Two domains of reviews: IMDb, then Yelp polarity, without their labels.

    Args:
        n_train: training texts a domain, those held out for validation included; a file with fewer gives all.
        n_test: test texts a domain, likewise.
        length: tokens of a text, or of a packed block.
        long_texts: what becomes of longer texts: truncate, pack (all texts joined and cut into blocks) or refuse.
        split_seed: draws the texts as the datasets library's shuffle does, and the validation part.
        validation_fraction: share of the chosen training texts held out for validation.
        task_labels: whether the task of a sample is known at evaluation.
        root: where the files lie; None: the run's data_root.
        cache: folder of token ids; None: data_root/cache/tokens.
    """

    name = "imdb_yelp"

    def __init__(
        self,
        *,
        n_train: int | None = 3000,
        n_test: int | None = 1000,
        length: int = 128,
        long_texts: str = TRUNCATE,
        split_seed: int = 42,
        validation_fraction: float = 0.0,
        task_labels: bool = True,
        root: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__(
            lengths=Lengths(text=length, long_texts=long_texts),
            n_train=n_train,
            n_test=n_test,
            split_seed=split_seed,
            validation_fraction=validation_fraction,
            task_labels=task_labels,
            root=root,
            cache=cache,
        )

    def _expected(self, data_root: Path) -> list[Expected]:
        return [Expected(domain.name, TEXT, None, domain.n_train, domain.n_test) for domain in REVIEWS]

    def _files(self, data_root: Path, say: Say) -> list[DomainFiles]:
        from cl_runner.benchmarks.text.downloads import find_reviews

        places = find_reviews(self._base(data_root), self._root_key, say)
        files = {which: TextFile(place, self._root_key, TEXT) for which, place in places.items()}
        return [DomainFiles(domain.name, files[domain.name, "train"], files[domain.name, "test"]) for domain in REVIEWS]


class TextDomains(TextBenchmark):
    """Any list of named files, of texts or of prompts with answers.

    Args:
        domains: mappings {name, train, test, metric} in order; without test a drawn tenth of train is held out; metric
            (of prompts with answers: one of `cl_runner.scores`, default exact_match).
        length: tokens of a text, or of a packed block.
        long_texts: what becomes of longer texts: truncate, pack (all texts joined and cut into blocks) or refuse.
        prompt_length: tokens of a prompt, of which the end is kept.
        answer_length: tokens of an answer, the one that ends it included.
        n_train: training texts a domain, those held out for validation included; None: all.
        n_test: test texts a domain; None: all.
        split_seed: draws the texts, the validation part, and a test part where a domain has none.
        validation_fraction: share of the chosen training texts held out for validation.
        task_labels: whether the task of a sample is known at evaluation.
        root: folder that paths are relative to, before the working directory and data_root.
        cache: folder of token ids; None: data_root/cache/tokens.

    Raises:
        RequestError: a domain has no name or no file, an unknown key, or another's name.
    """

    name = "text_domains"

    def __init__(
        self,
        *,
        domains: Sequence[Mapping[str, Any]] = (),
        length: int = 128,
        long_texts: str = TRUNCATE,
        prompt_length: int = 1024,
        answer_length: int = 512,
        n_train: int | None = None,
        n_test: int | None = None,
        split_seed: int = 0,
        validation_fraction: float = 0.0,
        task_labels: bool = True,
        root: str | None = None,
        cache: str | None = None,
    ) -> None:
        self.choices: list[Choice] = choose_all(domains)
        super().__init__(
            lengths=Lengths(length, long_texts, prompt_length, answer_length),
            n_train=n_train,
            n_test=n_test,
            split_seed=split_seed,
            validation_fraction=validation_fraction,
            task_labels=task_labels,
            root=root,
            cache=cache,
        )

    def _expected(self, data_root: Path) -> list[Expected]:
        bases = self._bases(data_root)
        return [Expected(choice.name, choice.kind(bases), choice.metric) for choice in self.choices]

    def _files(self, data_root: Path, say: Say) -> list[DomainFiles]:
        bases = self._bases(data_root)
        return [
            DomainFiles(choice.name, choice.file("train", bases), choice.file("test", bases), metric=choice.metric)  # type: ignore[arg-type]
            for choice in self.choices
        ]

    def _bases(self, data_root: Path) -> list[Path]:
        given = [Path(self.root).expanduser()] if self.root else []
        return [*given, Path.cwd(), data_root]


class Trace(TextBenchmark):
    """TRACE (Wang et al., 2023): eight tasks of prompts and answers, each with a score of its own.

    Args:
        domains: any of the eight in any order; None: all, in the published order.
        prompt_length: tokens of a prompt, of which the end is kept.
        answer_length: tokens of an answer, the one that ends it included.
        n_train: training examples a task, those held out for validation included; None: all.
        n_test: test examples a task; None: all.
        split_seed: draws the examples, and the validation part.
        validation_fraction: share of the chosen training examples held out for validation.
        validation_split: validate on eval.json instead.
        task_labels: whether the task of a sample is known at evaluation.
        root: where the folders of the tasks lie; None: the run's data_root.
        cache: folder of token ids; None: data_root/cache/tokens.

    Raises:
        RequestError: a task is unknown or named twice.
    """

    name = "trace"

    def __init__(
        self,
        *,
        domains: Sequence[str] | None = None,
        prompt_length: int = 1024,
        answer_length: int = 512,
        n_train: int | None = None,
        n_test: int | None = None,
        split_seed: int = 0,
        validation_fraction: float = 0.0,
        validation_split: bool = False,
        task_labels: bool = True,
        root: str | None = None,
        cache: str | None = None,
    ) -> None:
        self.domains = tuple(TRACE) if domains is None else tuple(map(str, domains))
        self.validation_split = validation_split
        super().__init__(
            lengths=Lengths(prompt=prompt_length, answer=answer_length),
            n_train=n_train,
            n_test=n_test,
            split_seed=split_seed,
            validation_fraction=0.0 if validation_split else validation_fraction,
            task_labels=task_labels,
            root=root,
            cache=cache,
        )
        self._check()

    def _check(self) -> None:
        if not self.domains:
            raise RequestError("benchmark.domains=[]: a stream needs a task", f"some of: {', '.join(TRACE)}")
        for name in self.domains:
            if name not in TRACE:
                raise RequestError(f"benchmark.domains: TRACE has no task '{shown(name)}'", nearest(name, tuple(TRACE)))
            if self.domains.count(name) > 1:
                raise RequestError(f"benchmark.domains names {name} twice", "each task is learned once")

    def _expected(self, data_root: Path) -> list[Expected]:
        return [Expected(name, ANSWER, TRACE[name], TRACE_TRAIN) for name in self.domains]

    def _files(self, data_root: Path, say: Say) -> list[DomainFiles]:
        base = self._base(data_root)
        folder = find_trace(base)
        hint = f"unpack {TRACE_ARCHIVE} into {base / 'trace'}; it comes from {TRACE_ADDRESS}"
        if folder is None:
            raise MissingData(f"{self._root_key}: neither {base / 'trace'} nor {base} holds a task of TRACE", hint)
        found = []
        for name in self.domains:
            files = {part: folder / name / file for part, file in TRACE_PARTS.items()}
            needed = ("train", "test", "validation") if self.validation_split else ("train", "test")
            missing = next((files[part] for part in needed if not files[part].is_file()), None)
            if missing is not None:
                raise MissingData(f"{self._root_key}: {missing} is not there", hint)
            parts = {part: TextFile(files[part], self._root_key, ANSWER) for part in needed}
            found.append(DomainFiles(name, **parts, metric=TRACE[name]))  # type: ignore[arg-type]
        return found
