"""Token ids as the model gets them: cut to the length that was asked for, or packed into blocks of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cl_runner.benchmarks.text.encoding import Encoded
from cl_runner.benchmarks.text.files import ANSWER, HELD, TEXT
from cl_runner.benchmarks.text.ragged import Ragged, offsets_of, side_by_side
from cl_runner.errors import RequestError

if TYPE_CHECKING:
    from cl_runner.tokens import Tokenizer

TRUNCATE, PACK, REFUSE = "truncate", "pack", "refuse"


@dataclass(frozen=True)
class Lengths:
    """How long sequences may be, in tokens, those that begin every text included.

    Attributes:
        text: of a text, or of a packed block.
        long_texts: what becomes of longer texts: truncate, pack or refuse; of longer prompts and answers: truncate or
            refuse.
        prompt: of a prompt, of which the end is kept.
        answer: of an answer, the token that ends it included.
    """

    text: int = 128
    long_texts: str = TRUNCATE
    prompt: int = 1024
    answer: int = 512

    def positions(self, kind: str) -> int:
        """Positions that the longest sequence of a kind of file may take."""
        return self.text if kind == TEXT else self.prompt + self.answer

    def unused(self, kinds: Collection[str]) -> list[str]:
        """A line for each key that was set and that files of these kinds do not use."""
        usual = Lengths()
        keys = {
            TEXT: (("length", self.text, usual.text),),
            ANSWER: (("prompt_length", self.prompt, usual.prompt), ("answer_length", self.answer, usual.answer)),
        }
        return [
            f"benchmark.{key}={value} has no use here: every domain holds {HELD[ANSWER if kind == TEXT else TEXT]}"
            for kind in keys.keys() - set(kinds)
            for key, value, default in keys[kind]
            if value != default
        ]


@dataclass(frozen=True)
class Sequences:
    """Samples in the making.

    Attributes:
        path: the file that they come from.
        ids: all tokens of each sample.
        firsts: index of the first token that is a target, (N,).
        lines: where each begins in the file, (N,).
        digests: of the raw texts or prompts, (N,).
        raw_prompts, raw_answers: UTF-8 bytes; None where there are no answers.
    """

    path: Path
    ids: Ragged
    firsts: np.ndarray
    lines: np.ndarray
    digests: np.ndarray
    raw_prompts: Ragged | None = None
    raw_answers: Ragged | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: np.ndarray) -> Sequences:
        """Some of them; ``which`` holds indices or is a mask."""
        which = np.flatnonzero(which) if which.dtype == bool else which
        raw = [None if part is None else part.take(which) for part in (self.raw_prompts, self.raw_answers)]
        ids, rest = self.ids.take(which), (self.firsts[which], self.lines[which], self.digests[which])
        return Sequences(self.path, ids, *rest, *raw)

    def fingerprints(self) -> list[bytes]:
        """Of the token ids of each sample: equal where those are."""
        return [hashlib.blake2b(self.ids[i].tobytes(), digest_size=16).digest() for i in range(len(self))]


def cut(encoded: Encoded, tokenizer: Tokenizer, lengths: Lengths, key: str) -> Sequences:
    """Puts the tokens around texts that stand there, and cuts them; what will be packed is not cut yet.

    Args:
        encoded: texts as ids.
        tokenizer: says what begins a text and ends an answer.
        lengths: how long they may be.
        key: the configuration key of the file, for messages.

    Raises:
        RequestError: texts, prompts or answers are too long where that is refused, a prompt or an answer has no token,
            or prompts were to be packed.
    """
    start = Ragged.repeated(tokenizer.start, len(encoded))
    room = len(tokenizer.start)
    if encoded.answers is None:
        ids = side_by_side(start, encoded.ids)
        if lengths.long_texts == REFUSE:
            _refuse_long(encoded, {"text": (ids.sizes, "length", lengths.text)}, key)
        elif lengths.long_texts == TRUNCATE:
            ids = ids.head(lengths.text)
        return Sequences(encoded.path, ids, np.full(len(ids), max(room, 1)), encoded.lines, encoded.digests)
    if lengths.long_texts == PACK:
        raise not_packed(f"{key}: {encoded.path}")
    _refuse_empty(encoded, tokenizer.name, key)
    if lengths.long_texts == REFUSE:
        sizes = {
            "prompt": (encoded.ids.sizes + room, "prompt_length", lengths.prompt),
            "answer": (encoded.answers.sizes + 1, "answer_length", lengths.answer),
        }
        _refuse_long(encoded, sizes, key)
    prompts = side_by_side(start, encoded.ids.tail(lengths.prompt - room))
    answers = encoded.answers.head(lengths.answer - 1)
    ids = side_by_side(prompts, answers, Ragged.repeated((tokenizer.eos,), len(encoded)))
    raw = (encoded.raw_prompts, encoded.raw_answers)
    return Sequences(encoded.path, ids, prompts.sizes, encoded.lines, encoded.digests, *raw)


def _refuse_long(encoded: Encoded, sizes: Mapping[str, tuple[np.ndarray, str, int]], key: str) -> None:
    """Refuses what is too long: of each part its tokens, (N,), and the key and value of what it may take at most."""
    found = []
    for part, (taken, limit, most) in sizes.items():
        long = np.flatnonzero(taken > most)
        if len(long):
            first = long[encoded.lines[long].argmin()]
            found.append((int(encoded.lines[first]), part, int(taken[first]), f"benchmark.{limit}", most))
    if found:
        line, part, tokens, limit, most = min(found, key=lambda item: item[0])
        raise RequestError(
            f"{key}: {encoded.path}, line {line}: the {part} takes {tokens} tokens, more than {limit}={most}",
            f"raise {limit}, or use benchmark.long_texts=truncate" + (" or pack" if part == "text" else ""),
        )


def _refuse_empty(encoded: Encoded, tokenizer: str, key: str) -> None:
    """Refuses a prompt of which the model would see nothing, and an answer that nothing could be learned from."""
    assert encoded.answers is not None
    empty = [(int(encoded.lines[index]), part)
             for part, ids in (("prompt", encoded.ids), ("answer", encoded.answers))
             for index in np.flatnonzero(ids.sizes == 0)]  # fmt: skip
    if empty:
        line, part = min(empty, key=lambda item: item[0])
        raise RequestError(
            f"{key}: {encoded.path}, line {line}: the {part} has no token: backbone.tokenizer={tokenizer} makes "
            "nothing of it",
            "drop it, or choose another backbone.tokenizer",
        )


def not_packed(what: str) -> RequestError:
    """The refusal to pack prompts and answers: joined, no answer would have its prompt alone before it."""
    return RequestError(
        f"benchmark.long_texts=pack: {what} holds prompts with answers, which are not packed",
        "use benchmark.long_texts=truncate; benchmark.prompt_length and answer_length say where these are cut",
    )


def without_targets(sequences: Sequences) -> np.ndarray:
    """Which samples leave nothing to predict, bool (N,): texts of one token with none before it."""
    return sequences.ids.sizes <= sequences.firsts


def drop_without_targets(sequences: Sequences, name: str, say: Callable[[str], None]) -> Sequences:
    """Leaves out texts of a single token; says how many, and where the first one stands."""
    idle = without_targets(sequences)
    if not idle.any():
        return sequences
    line = int(sequences.lines[idle].min())
    say(f"{name}: texts of one token leave nothing to predict and were dropped: {int(idle.sum())}, the first one in "
        f"{sequences.path}, line {line}")  # fmt: skip
    return sequences.take(~idle)


def packed(sequences: Sequences, length: int, eos: int) -> Sequences:
    """Joins texts, an eos between two of them, and cuts them into blocks; every token is in exactly one block.

    The last block is shorter; where one token alone would be left, which nothing could predict, the block before it
    gives it a second one.

    Args:
        sequences: texts, uncut.
        length: tokens of a block, at least 3.
        eos: stands between two texts.
    """
    if not len(sequences):
        return sequences
    count = len(sequences)
    ends = np.ones(count, np.int64)
    ends[-1] = 0
    between = Ragged(np.full(count - 1, eos, np.int32), offsets_of(ends))
    joined = side_by_side(sequences.ids, between)
    total = len(joined.flat)
    cuts = np.append(np.arange(0, total, length), total)
    if total % length == 1 and total > 1:
        cuts[-2] -= 1
    holder = np.searchsorted(joined.offsets, cuts[:-1], side="right") - 1  # the text that a block begins in
    blocks = Ragged(joined.flat, cuts)
    ones = np.ones(len(blocks), np.int64)
    return replace(sequences, ids=blocks, firsts=ones, lines=sequences.lines[holder], digests=sequences.digests[holder])
