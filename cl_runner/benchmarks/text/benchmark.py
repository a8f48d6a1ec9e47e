"""What the streams of texts share: choosing, cutting, looking for leaks, putting together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cl_runner.benchmarks.stream import Task
from cl_runner.benchmarks.text.catalogue import TOKEN_ACCURACY
from cl_runner.benchmarks.text.encoding import Encoded, encode
from cl_runner.benchmarks.text.files import ANSWER, HELD, TEXT, TextFile
from cl_runner.benchmarks.text.leaks import Parts, check_disjoint, without_leaks
from cl_runner.benchmarks.text.packing import pack_domain
from cl_runner.benchmarks.text.selection import REST, TENTH, WHOLE, Selection, held_out, share_of
from cl_runner.benchmarks.text.sequences import PACK, Lengths, Sequences, cut, drop_without_targets, not_packed
from cl_runner.benchmarks.text.stream import LanguageStream
from cl_runner.benchmarks.text.token_cache import TokenCache
from cl_runner.errors import RequestError

if TYPE_CHECKING:
    from cl_runner.tokens import Tokenizer

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class DomainFiles:
    """A domain before it is read.

    Attributes:
        name: of the domain.
        train: what it learns from.
        test: None: a drawn tenth of the training file.
        validation: a validation part of its own, where that is used.
        metric: what it is scored by; None: what suits the kind of its files.
    """

    name: str
    train: TextFile
    test: TextFile | None = None
    validation: TextFile | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Expected:
    """A domain of an outline.

    Attributes:
        name: of the domain.
        kind: `text` or `answer`.
        metric: what it is scored by; None: what suits the kind.
        n_train, n_test: published numbers of texts; 0 where unknown.
    """

    name: str
    kind: str
    metric: str | None = None
    n_train: int = 0
    n_test: int = 0


class TextBenchmark(ABC):
    """A task a domain of texts; subclasses say which domains.

    Args:
        lengths: how long sequences may be.
        n_train: training texts a domain, those held out for validation included; None: all.
        n_test: test texts a domain; None: all.
        split_seed: draws the texts, the validation part, and a test part where a domain has none.
        validation_fraction: share of the chosen training texts held out for validation.
        task_labels: whether the task of a sample is known at evaluation.
        root: where the files lie; None: the run's data_root.
        cache: folder of token ids; None: data_root/cache/tokens.
    """

    modality: ClassVar[str] = "text"
    name: ClassVar[str] = ""

    def __init__(
        self,
        *,
        lengths: Lengths,
        n_train: int | None,
        n_test: int | None,
        split_seed: int,
        validation_fraction: float,
        task_labels: bool,
        root: str | None,
        cache: str | None,
    ) -> None:
        self.lengths, self.n_train, self.n_test = lengths, n_train, n_test
        self.split_seed, self.validation_fraction = split_seed, validation_fraction
        self.task_labels, self.root, self.cache = task_labels, root, cache

    @abstractmethod
    def _expected(self, data_root: Path) -> list[Expected]:
        """The domains as far as they are known without their files."""

    @abstractmethod
    def _files(self, data_root: Path, say: Say) -> list[DomainFiles]:
        """The domains' files; raises RequestError where one is missing."""

    def outline(self, data_root: Path) -> LanguageStream:
        """The stream without its texts: needs neither files nor a tokenizer. Unknown numbers of texts are 0."""
        domains = self._expected(data_root)
        tasks = []
        for index, domain in enumerate(domains):
            blocks = self.lengths.long_texts == PACK
            if blocks and domain.kind == ANSWER:
                raise not_packed(f"benchmark.domains: {domain.name}")
            n_train = 0 if blocks else self._trained(_least(self.n_train, domain.n_train))
            n_test = 0 if blocks else _least(self.n_test, domain.n_test)
            tasks.append(Task(index, domain.name, (index,), (domain.name,), n_train, n_test))
        metrics = [domain.metric or _suits(domain.kind) for domain in domains]
        return self._stream(tasks, metrics, {domain.kind for domain in domains})

    def stream(self, data_root: Path, progress: Progress | None = None, *, tokenizer: Tokenizer) -> LanguageStream:
        """The stream with its texts as token ids.

        Args:
            data_root: where files lie, unless ``root`` says it.
            progress: called as (texts, texts in all) while a file is tokenised.
            tokenizer: the model's.

        Raises:
            RequestError: a file is missing or damaged, or its texts do not fit what was asked for.
        """
        from cl_runner.benchmarks.text.assemble import assemble

        self._check_room(tokenizer)
        notes: list[str] = []
        folder = Path(self.cache).expanduser() if self.cache else data_root / "cache" / "tokens"
        reader = _Reader(self, tokenizer, TokenCache(folder, notes.append), notes.append, progress)
        domains, leaks = without_leaks([reader.parts(domain) for domain in self._files(data_root, notes.append)])
        check_disjoint(domains)
        if self.lengths.long_texts == PACK:
            packs = [pack_domain(domain, self.lengths.text, tokenizer.eos) for domain in domains]
            domains, leaks = [domain for domain, _ in packs], [*leaks, *(line for _, lines in packs for line in lines)]
        tasks, store = assemble(domains, pad=tokenizer.pad, labelled=self.task_labels)
        unused = self.lengths.unused(reader.kinds)
        metrics, told = [domain.metric for domain in domains], tuple(dict.fromkeys((*notes, *leaks, *unused)))
        return self._stream(tasks, metrics, reader.kinds, store=store, notes=told, tokenizer=tokenizer)

    def _stream(
        self, tasks: Sequence[Task], metrics: Sequence[str], kinds: set[str], **ready: object
    ) -> LanguageStream:
        generates = any(metric != TOKEN_ACCURACY for metric in metrics)
        return LanguageStream(
            name=self.name,
            tasks=tuple(tasks),
            task_labels=self.task_labels,
            n_classes=len(tasks),
            length=max(self.lengths.positions(kind) for kind in kinds),
            answer_length=self.lengths.answer if generates else None,
            metrics=tuple(metrics),
            **ready,  # type: ignore[arg-type]
        )

    def _trained(self, count: int) -> int:
        """Of ``count`` chosen training texts those that are not held out."""
        return count - share_of(self.validation_fraction, count) if self.validation_fraction and count else count

    def _check_room(self, tokenizer: Tokenizer) -> None:
        room = len(tokenizer.start)
        for key, most in (("length", self.lengths.text), ("prompt_length", self.lengths.prompt)):
            if most <= room:
                raise RequestError(
                    f"benchmark.{key}={most}: backbone.tokenizer={tokenizer.name} begins every text with {room} tokens",
                    f"set benchmark.{key} to more than {room}",
                )

    def _base(self, data_root: Path) -> Path:
        return Path(self.root).expanduser() if self.root else data_root

    @property
    def _root_key(self) -> str:
        """The key that says where files lie, for messages."""
        return "benchmark.root" if self.root else "data_root"


class _Reader:
    """Reads one domain after another, and remembers what kinds of files there were."""

    def __init__(
        self, asked: TextBenchmark, tokenizer: Tokenizer, cache: TokenCache, say: Say, progress: Progress | None
    ) -> None:
        self.asked, self.tokenizer, self.cache, self.say, self.progress = asked, tokenizer, cache, say, progress
        self.kinds: set[str] = set()

    def parts(self, domain: DomainFiles) -> Parts:
        """A domain's samples, cut, before leaks are looked for."""
        asked, drawn = self.asked, domain.test is None
        train = self._encode(domain, "training", domain.train, asked.n_train, REST if drawn else WHOLE)
        test = self._encode(domain, "test", domain.test or domain.train, asked.n_test, TENTH if drawn else WHOLE)
        if train.kind != test.kind:
            raise RequestError(
                f"{domain.train.key}: {train.path} holds {HELD[train.kind]}, {test.path} holds {HELD[test.kind]}",
                "both files of a domain hold the same fields",
            )
        self.kinds.add(train.kind)
        metric = _metric(domain, train.kind)
        trained = self._cut(domain, domain.train, train)
        if domain.validation is not None:
            given = self._encode(domain, "validation", domain.validation, None, WHOLE)
            validation = self._cut(domain, domain.validation, given)
        else:
            kept, held = held_out(len(trained), asked.validation_fraction, asked.split_seed)
            trained, validation = trained.take(kept), trained.take(held)
        tested = self._cut(domain, domain.test or domain.train, test)
        parts = Parts(domain.name, metric, trained, validation, tested)
        for part, file in ((parts.train, domain.train), (parts.test, domain.test or domain.train)):
            if not len(part):
                raise RequestError(
                    f"{file.key}: {file.path} leaves {domain.name} without a sample: its texts are of one token",
                    "name a file of longer texts",
                )
        return parts

    def _encode(self, domain: DomainFiles, part: str, file: TextFile, most: int | None, share: str) -> Encoded:
        selection = Selection(most, self.asked.split_seed, share)
        encoded = encode(file, selection, self.tokenizer, self.cache, self.progress)
        if not len(encoded):
            raise RequestError(
                f"{file.key}: {file.path} holds one text, and a part of it was to be the test",
                "name a file of more texts, or a test file",
            )
        if most is not None and len(encoded) < most:
            key = "n_train" if part == "training" else "n_test"
            self.say(f"{domain.name}: {len(encoded)} {part} texts, fewer than benchmark.{key}={most}; all are used")
        return encoded

    def _cut(self, domain: DomainFiles, file: TextFile, encoded: Encoded) -> Sequences:
        lengths = self.asked.lengths
        sequences = cut(encoded, self.tokenizer, lengths, file.key)
        if lengths.long_texts == PACK:  # the text before it may predict a text of one token
            return sequences
        return drop_without_targets(sequences, domain.name, self.say)


def _metric(domain: DomainFiles, kind: str) -> str:
    if kind == TEXT and domain.metric not in (None, TOKEN_ACCURACY):
        raise RequestError(
            f"benchmark.domains: {domain.name} has metric={domain.metric}, and {domain.train.path} holds texts "
            "without answers",
            f"drop it, or use files of prompts and answers; texts are scored by {TOKEN_ACCURACY}",
        )
    return domain.metric or _suits(kind)


def _suits(kind: str) -> str:
    return "exact_match" if kind == ANSWER else TOKEN_ACCURACY


def _least(asked: int | None, published: int) -> int:
    """How many texts there will be: as many as were asked for, and no more than there are; 0 where neither is known."""
    return min(asked or published, published or asked or 0)
