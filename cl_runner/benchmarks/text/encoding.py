"""Chosen texts of a file as token ids, uncut: prepared once, then read from the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cl_runner.benchmarks.sources.dataset import MissingData, Progress
from cl_runner.benchmarks.text.files import ANSWER, TEXT, TextFile, Texts
from cl_runner.benchmarks.text.ragged import Ragged, offsets_of
from cl_runner.benchmarks.text.selection import Selection
from cl_runner.benchmarks.text.token_cache import Arrays, TokenCache

if TYPE_CHECKING:
    from cl_runner.tokens import Tokenizer

FORMAT = 1  # raised when the same texts would be stored differently
BATCH = 1000  # texts that the tokenizer gets at once
DIGEST = 16  # bytes


@dataclass(frozen=True)
class Encoded:
    """Texts as ids, without what stands before and after them.

    Attributes:
        kind: `text` or `answer`.
        path: the file that they come from.
        ids: of the texts, or of the prompts.
        lines: where each begins in the file, (N,).
        digests: of the raw texts or prompts, bytes of length 16, (N,): equal where those are.
        answers: ids of the answers; None where there are none.
        raw_prompts, raw_answers: UTF-8 bytes; None where there are no answers.
    """

    kind: str
    path: Path
    ids: Ragged
    lines: np.ndarray
    digests: np.ndarray
    answers: Ragged | None = None
    raw_prompts: Ragged | None = None
    raw_answers: Ragged | None = None

    def __len__(self) -> int:
        return len(self.ids)


def encode(
    file: TextFile, selection: Selection, tokenizer: Tokenizer, cache: TokenCache, progress: Progress | None = None
) -> Encoded:
    """Reads, chooses and tokenises, where the cache does not hold the result.

    Args:
        file: what to read.
        selection: which of its texts.
        tokenizer: turns them into ids.
        cache: holds ids by the file's path, size and time, the selection and the tokenizer.
        progress: called as (texts, texts in all) while texts are tokenised.

    Raises:
        RequestError: the file is missing or a text of it cannot be used.
    """
    try:
        found = file.path.stat()
    except OSError as error:
        raise MissingData(
            f"{file.key}: {file.path} is not there: {error.strerror}", "name a file that exists"
        ) from error
    about = {
        "name": file.path.name.split(".")[0],
        "format": FORMAT,
        "file": [str(file.path.absolute()), found.st_size, found.st_mtime_ns],
        "kind": file.kind,
        "selection": asdict(selection),
        "tokenizer": tokenizer.fingerprint,
    }

    def make() -> tuple[Arrays, str]:
        _, texts = file.read(selection.choose)
        return _arrays(texts, tokenizer, progress), texts.kind

    arrays, kind = cache.get(about, make)
    return _encoded(arrays, kind, file.path)


def tokens_of(texts: list[str], tokenizer: Tokenizer, tick: Callable[[int], None] = lambda done: None) -> Ragged:
    """Ids of texts, asked for in batches; ``tick`` is called with the texts done."""
    rows: list[np.ndarray] = []
    for begin in range(0, len(texts), BATCH):
        batch = texts[begin : begin + BATCH]
        rows += [np.asarray(row, np.int32) for row in tokenizer.encode(batch)]
        tick(len(batch))
    return Ragged.of(rows)


def _arrays(texts: Texts, tokenizer: Tokenizer, progress: Progress | None) -> Arrays:
    total, done = len(texts.texts) + len(texts.answers), 0

    def tick(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress(done, total)

    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=DIGEST).digest() for text in texts.texts)
    arrays = {"lines": texts.lines, "digests": np.frombuffer(digests, np.uint8)}
    parts = {"ids": tokens_of(texts.texts, tokenizer, tick)}
    if texts.kind == ANSWER:
        parts["answers"] = tokens_of(texts.answers, tokenizer, tick)
        parts["raw_prompts"], parts["raw_answers"] = Ragged.of_texts(texts.texts), Ragged.of_texts(texts.answers)
    for name, part in parts.items():
        arrays[name], arrays[f"{name}.sizes"] = part.flat, part.sizes
    return arrays


def _encoded(arrays: Arrays, kind: str, path: Path) -> Encoded:
    def ragged(name: str) -> Ragged:
        return Ragged(arrays[name], offsets_of(arrays[f"{name}.sizes"]))

    digests = np.frombuffer(arrays["digests"].tobytes(), f"V{DIGEST}")
    if kind == TEXT:
        return Encoded(kind, path, ragged("ids"), arrays["lines"], digests)
    answers, raw_prompts, raw_answers = (ragged(name) for name in ("answers", "raw_prompts", "raw_answers"))
    return Encoded(kind, path, ragged("ids"), arrays["lines"], digests, answers, raw_prompts, raw_answers)
