"""Files of texts: JSON lines, plain text, TRACE's lists. What cannot be read is refused by file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cl_runner.benchmarks.sources.dataset import MissingData, Progress
from cl_runner.benchmarks.sources.source import unreadable
from cl_runner.errors import RequestError, shown

TEXT, ANSWER = "text", "answer"
"""What a file holds: texts, or prompts with answers."""

HELD = {TEXT: "texts", ANSWER: "prompts with answers"}
FIELDS = {TEXT: ("text",), ANSWER: ("prompt", "answer")}
LINES, LIST, PLAIN = (".jsonl", ".json-lines"), (".json",), (".txt",)
_WANTED = '{"text": ...} or {"prompt": ..., "answer": ...}'
_SPACE = " \t\r\n"


@dataclass(frozen=True)
class Texts:
    """Some texts of a file.

    Attributes:
        kind: `text` or `answer`.
        texts: the texts, or the prompts.
        answers: one a prompt; empty where there are none.
        lines: where each begins in the file, from 1; int64 (N,).
    """

    kind: str
    texts: list[str]
    answers: list[str]
    lines: np.ndarray


class TextFile:
    """A file of texts, `.jsonl`, `.json-lines`, `.json` or `.txt`, each also with `.gz`.

    Args:
        path: the file.
        key: the configuration key that names it, for messages.
        kind: what it has to hold, `text` or `answer`; None: what its first text says.

    Raises:
        RequestError: from every method: the file is missing, empty or damaged, or a text in it is; the message names
            the line.
    """

    def __init__(self, path: Path, key: str, kind: str | None = None) -> None:
        self.path, self.key, self.kind = path, key, kind
        name = path.name.lower().removesuffix(".gz")
        self.suffix = next((end for end in (*LINES, *LIST, *PLAIN) if name.endswith(end)), "")
        if not self.suffix:
            raise RequestError(
                f"{key}: {path} is of no kind that is read here",
                f"{', '.join((*LINES, *LIST, *PLAIN))}, each also with .gz",
            )

    def first_kind(self) -> str:
        """What the first text says that the file holds; reads no further."""
        for line, record in self._records():
            return self._fields(record, line, self.kind)[0]
        raise self._empty()

    def count(self) -> int:
        """How many texts there are, not looked into."""
        if self.suffix in LIST:
            return sum(1 for _ in self._records())
        return sum(1 for _ in self._lines())

    def check(self, progress: Progress | None = None) -> int:
        """Reads every text and returns their number."""
        return len(self.read(lambda count: np.arange(0), progress)[0])

    def read(self, choose: Callable[[int], np.ndarray], progress: Progress | None = None) -> tuple[np.ndarray, Texts]:
        """Reads all texts and keeps some of them.

        Args:
            choose: gives the positions to keep, in the order wanted, for the number of texts in the file.
            progress: called as (texts read, texts).

        Returns:
            The line of every text of the file, and the texts that were chosen.
        """
        count = self.count()
        if not count:
            raise self._empty()
        chosen = choose(count)
        rank = {position: index for index, position in enumerate(chosen.tolist())}
        kept: list[tuple[str, ...]] = [()] * len(rank)
        kind, lines = self.kind, np.zeros(count, np.int64)
        for position, (line, record) in enumerate(self._records()):
            kind, fields = self._fields(record, line, kind)
            lines[position] = line
            if position in rank:
                kept[rank[position]] = fields
            if progress and (position + 1 == count or position % 10_000 == 0):
                progress(position + 1, count)
        assert kind is not None
        answers = [fields[1] for fields in kept] if kind == ANSWER else []
        return lines, Texts(kind, [fields[0] for fields in kept], answers, lines[chosen])

    def _records(self) -> Iterator[tuple[int, Any]]:
        """Each text with its line, as it stands in the file: JSON that is parsed and not yet looked into."""
        if self.suffix in LIST:
            yield from self._list()
            return
        for line, raw in self._lines():
            try:
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise self._refusal(line, f"is not UTF-8: {error.reason} at byte {error.start + 1}") from error
            yield line, {"text": text.rstrip("\r\n")} if self.suffix in PLAIN else self._parsed(text, line)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank."""
        line = 0
        try:
            with self._open() as stream:
                for raw in stream:
                    line += 1
                    if raw.strip():
                        yield line, raw
        except FileNotFoundError as error:
            raise MissingData(f"{self.key}: {self.path} does not exist", "name a file that is there") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._refusal(line + 1, f"the file is cut short or damaged: {shown(error)}") from error
        except OSError as error:
            raise unreadable(self.path, self.key, error) from error

    def _open(self) -> Any:
        return gzip.open(self.path, "rb") if self.path.name.lower().endswith(".gz") else self.path.open("rb")

    def _parsed(self, text: str, line: int) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise self._refusal(line, f"is not JSON: {error.msg} at column {error.colno}: {shown(text, 30)}") from error
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits; a thousand brackets
            raise self._refusal(line, f"is not JSON that can be read: {shown(error)}") from error

    def _list(self) -> Iterator[tuple[int, Any]]:
        """The items of a JSON list, parsed one by one so that each has a line."""
        text = self._whole()
        at = _skip(text, 0)
        if at == len(text):
            return
        if text[at] != "[":
            hint = "; JSON lines are called .jsonl" if text[at] == "{" else ""
            raise self._refusal(_line(text, at), f"is no JSON list{hint}: {shown(text[at : at + 99], 30)}")
        decoder, line, seen = json.JSONDecoder(), 1, 0
        at = _skip(text, at + 1)
        while text[at : at + 1] != "]":
            line, seen = line + text.count("\n", seen, at), at
            try:
                item, at = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                raise self._refusal(error.lineno, f"is not JSON: {error.msg} at column {error.colno}") from error
            except (ValueError, RecursionError) as error:
                raise self._refusal(line, f"is not JSON that can be read: {shown(error)}") from error
            yield line, item
            at = _skip(text, at)
            if text[at : at + 1] == ",":
                at = _skip(text, at + 1)
                if text[at : at + 1] == "]":
                    raise self._refusal(_line(text, at), "is not JSON: a comma before the end of the list")
            elif text[at : at + 1] != "]":
                raise self._refusal(_line(text, at), "is not JSON: a comma or ] is missing, or the file is cut short")
        if _skip(text, at + 1) != len(text):
            raise self._refusal(_line(text, _skip(text, at + 1)), "is not JSON: something follows the list")

    def _whole(self) -> str:
        lines: list[bytes] = []
        for line, raw in self._lines():
            lines += [b"\n"] * (line - len(lines) - 1)  # blank lines count as lines
            lines.append(raw)
        try:
            return b"".join(lines).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise self._refusal(line, f"is not UTF-8: {error.reason}") from error

    def _fields(self, record: Any, line: int, kind: str | None) -> tuple[str, tuple[str, ...]]:
        """What a record holds, and its texts; ``kind`` None: what its fields say."""
        if not isinstance(record, dict):
            raise self._refusal(line, f"is no JSON object: {shown(record, 30)}")
        if kind is None:
            kind = TEXT if "text" in record or not {"prompt", "answer"} & record.keys() else ANSWER
        for name in FIELDS[kind]:
            if name not in record:
                found = ", ".join(map(str, record)) or "none"
                raise self._refusal(line, f"has no field '{name}'; its fields: {shown(found)}")
            value = record[name]
            if not isinstance(value, str):
                raise self._refusal(line, f"the field '{name}' is no text: {shown(value, 30)}")
            if not value.strip():
                raise self._refusal(line, f"the field '{name}' is empty")
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise self._refusal(line, f"the field '{name}' holds half of a surrogate pair") from error
        return kind, tuple(record[name] for name in FIELDS[kind])

    def _empty(self) -> RequestError:
        return self._refusal(1, "the file holds no text")

    def _refusal(self, line: int, reason: str) -> RequestError:
        return RequestError(f"{self.key}: {self.path}, line {line}: {reason}", self._hint())

    def _hint(self) -> str:
        if self.suffix in PLAIN:
            return "a text a line, in UTF-8"
        wanted = _WANTED if self.kind is None else "{" + ", ".join(f'"{name}": ...' for name in FIELDS[self.kind]) + "}"
        return f"a list of {wanted}" if self.suffix in LIST else f"a line holds {wanted}"


def _skip(text: str, at: int) -> int:
    """The next position that is not white space."""
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
