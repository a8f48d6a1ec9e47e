"""The checkpoints of a run on disk: numbered pairs of a JSON file and a safetensors file, each with its checksum.

A checkpoint stands alone, or on an earlier one that holds what has not changed since (its base). The JSON file is
written last: it is what makes a checkpoint. Nothing here looks into the states.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_runner.errors import RequestError
from cl_runner.recording.durable import CHUNK, sha256_of, write_whole
from cl_runner.recording.events import write_error

FORMAT = 1
FOLDER = "checkpoints"
KEPT = 2
_HEAD, _MIDDLE, _TAIL = b'{"sha256": "', b'",\n"content": ', b"}\n"
_DIGEST = 64


@dataclass(frozen=True)
class Checkpoint:
    """What a run can go on from.

    Attributes:
        number: its place among the run's checkpoints, from 1.
        where: in words, e.g. "task 2, epoch 3, step 40".
        state: plain values; tensors are named in it.
        events: bytes of `events.jsonl` that were written by then.
        tensors: its file of tensors; None where it has none.
        base: the earlier checkpoint that it stands on; None where it stands alone.
    """

    number: int
    where: str
    state: dict[str, Any]
    events: int
    tensors: Path | None
    base: Checkpoint | None


class Damaged(Exception):  # noqa: N818, it is handled, not reported as an error
    """A file is not what was written."""


class Checkpoints:
    """The checkpoints in a run folder.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self.folder = Path(run) / FOLDER
        self._events = Path(run) / "events.jsonl"
        self._bases: dict[int, int | None] = {}  # of those that this process has written

    def write(
        self,
        where: str,
        state: Mapping[str, Any],
        tensors: bytes | None,
        *,
        events: tuple[int, str],
        base: int | None = None,
    ) -> int:
        """Writes a checkpoint and drops those that are no longer needed: the last two are kept, and what they stand on.

        Args:
            where: in words.
            state: plain values that JSON can hold.
            tensors: in the safetensors format.
            events: bytes of `events.jsonl` so far, and their SHA-256.
            base: number of the checkpoint that this one stands on.

        Returns:
            Its number.

        Raises:
            RequestError: it cannot be written; the earlier ones are as they were.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(error, self.folder) from error
        number = max(self.numbers(), default=0) + 1
        content: dict[str, Any] = {"format": FORMAT, "number": number, "where": where, "base": base}
        if tensors is not None:
            pieces = (memoryview(tensors)[start : start + CHUNK] for start in range(0, len(tensors), CHUNK))
            content["tensors"] = [len(tensors), write_whole(self._tensors(number), pieces, more=True)]
        content |= {"events": list(events), "state": state}
        body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
        whole = b"".join([_HEAD, hashlib.sha256(body).hexdigest().encode(), _MIDDLE, body, _TAIL])
        try:
            write_whole(self._place(number), [whole])
        except RequestError:
            with contextlib.suppress(OSError):  # on a full disk what says so needs the room
                self._tensors(number).unlink(missing_ok=True)
            raise
        self._bases[number] = base
        self._drop_old(number)
        return number

    def numbers(self) -> list[int]:
        """The numbers of what is there, damaged or not, in order."""
        return sorted(int(file.stem) for file in self.folder.glob("*.json") if file.stem.isdecimal())

    def latest(self, told: Callable[[str], None], *, events: bool = True) -> Checkpoint | None:
        """The last checkpoint that is whole, with everything it stands on and the events before it.

        Args:
            told: is told of every later one that is not, and why.
            events: whether the events have to be whole.
        """
        for number in reversed(self.numbers()):
            try:
                return self._read(number, checked_events=events)
            except Damaged as damage:
                told(f"checkpoint {number} cannot be used: {damage}")
        return None

    def forget_after(self, number: int) -> None:
        """Removes later ones: they could not be used, and the run goes another way from here."""
        for later in self.numbers():
            if later > number:
                self._place(later).unlink(missing_ok=True)
                self._tensors(later).unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all of them, and what a killed process left half written."""
        if self.folder.is_dir():
            for pattern in ("*.json", "*.safetensors", ".*.partial"):
                for place in self.folder.glob(pattern):
                    place.unlink(missing_ok=True)

    def _read(self, number: int, *, checked_events: bool = False) -> Checkpoint:
        content = self._content(number)
        tensors = None
        if content.get("tensors") is not None:
            tensors = self._tensors(number)
            _check(tensors, *content["tensors"])
        if checked_events:
            _check(self._events, *content["events"], longer=True)
        base = None if content["base"] is None else self._read(content["base"])
        return Checkpoint(number, content["where"], content["state"], content["events"][0], tensors, base)

    def _content(self, number: int) -> dict[str, Any]:
        place = self._place(number)
        try:
            text = place.read_bytes()
        except OSError as error:
            raise Damaged(f"{place} cannot be read: {error.strerror}") from None
        body = text[len(_HEAD) + _DIGEST + len(_MIDDLE) : -len(_TAIL)]
        if _HEAD + hashlib.sha256(body).hexdigest().encode() + _MIDDLE + body + _TAIL != text:
            raise Damaged(f"{place} is damaged: its checksum is not that of its content")
        try:
            content: dict[str, Any] = json.loads(body)
            found, written, base = content["format"], content["number"], content["base"]
            in_order = base is None or base < number
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Damaged(f"{place} holds no checkpoint") from None
        if found != FORMAT:
            raise Damaged(f"{place} is of format {found}, and this version reads {FORMAT}")
        if written != number or not in_order:
            raise Damaged(f"{place} holds checkpoint {written}, on {base}")
        return content

    def _drop_old(self, newest: int) -> None:
        """Removes what the last checkpoints do not need; one that was never finished, too."""
        bases: dict[int, int | None] = {}
        for number in self.numbers():
            with contextlib.suppress(Damaged):
                bases[number] = self._bases[number] if number in self._bases else self._content(number)["base"]
        standing = [number for number, base in bases.items() if base is None]
        needed = {*sorted(bases)[-KEPT:], *standing[-KEPT:], newest}
        needed |= {base for number in needed if (base := bases.get(number)) is not None}
        numbered = [item for kind in ("json", "safetensors") for item in self.folder.glob(f"*.{kind}")]
        old = [item for item in numbered if item.stem.isdecimal() and int(item.stem) not in needed]
        for place in [*old, *self.folder.glob(".*.partial")]:
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _tensors(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


def _check(place: Path, size: int, digest: str, *, longer: bool = False) -> None:
    """Raises Damaged where a file, or with ``longer`` its beginning, is not what it was."""
    try:
        found = place.stat().st_size
        same = (found >= size if longer else found == size) and sha256_of(place, size) == digest
    except OSError as error:
        raise Damaged(f"{place} cannot be read: {error.strerror}") from None
    if not same:
        raise Damaged(f"{place} is damaged: it had {size:,} bytes, has {found:,}, or its checksum differs")
