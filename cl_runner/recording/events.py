"""The event log of a run, ``events.jsonl``: every logged value, one JSON object a line."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cl_runner.errors import RequestError
from cl_runner.recording.redact import redact

_REASONS = {
    errno.ENOSPC: "no space left on device",
    errno.EDQUOT: "the disk quota is used up, no space left on device",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
}


def write_error(error: OSError, path: Path) -> RequestError:
    """Turns an operating-system error while writing ``path`` into a request error a person can act on."""
    reason = _REASONS.get(error.errno or 0, (error.strerror or str(error)).lower())
    return RequestError(
        f"output_root: {reason} while writing {path}",
        "free that place (a run that had begun goes on with resume=FOLDER), or choose another with output_root=FOLDER",
    )


def plain(value: Any) -> Any:
    """Returns ``value`` as JSON can hold it: Python numbers, lists, dicts; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        return plain(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


class EventLog:
    """Appends events to a file: one JSON object a line with ``time`` (Unix seconds), ``event`` and its fields.

    Every line goes to the operating system in one unbuffered write, so that a killed run loses at most
    the line it was writing; a line torn that way is removed when the log is opened again.

    Args:
        path: the file; what is in it stays.
        keep: bytes of it that stay; None: all.

    Attributes:
        silent: nothing is written; what would be has been written by an earlier attempt.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self.path = Path(path)
        self.silent = False
        try:
            self._file = self.path.open("ab", buffering=0)
            if keep is not None:
                os.truncate(self.path, keep)
            _mend(self.path)
            self._digest, self._length = _digest_of(self.path)
        except OSError as error:
            raise write_error(error, self.path) from error

    def settled(self) -> tuple[int, str]:
        """Waits until everything is on the disk; returns how many bytes that are, and their SHA-256."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(error, self.path) from error
        return self._length, self._digest.hexdigest()

    def write(self, event: str, /, **fields: Any) -> dict[str, Any]:
        """Appends one event.

        Returns:
            The record as written, for trackers.

        Raises:
            ValueError: a field is called ``time`` or ``event``.
            RequestError: the line cannot be written, e.g. because the disk is full.
        """
        if reserved := {"time", "event"} & fields.keys():
            raise ValueError(f"event {event}: the field names {sorted(reserved)} are the log's own")
        record = {"time": time.time(), "event": event, **redact(plain(fields))}
        if self.silent:
            return record
        line = written = json.dumps(record, allow_nan=False).encode() + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(start)  # the next event must not be glued to half a line
            raise write_error(error, self.path) from error
        self._digest.update(written)
        self._length += len(written)
        return record

    def close(self) -> None:
        """Closes the file; further writes raise ValueError."""
        self._file.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the events of a log in order; a last line that was torn by a kill is left out.

    Raises:
        RequestError: a line before the last one is damaged.
    """
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        record = _parsed(line)
        if record is not None:
            yield record
        elif any(lines[number:]):
            raise RequestError(f"{path}: line {number} is not a JSON object, the file is damaged")


def _digest_of(path: Path) -> tuple[Any, int]:
    """The SHA-256 of what is in a file so far, to be gone on with, and its length; of a device nothing is read."""
    digest, length = hashlib.sha256(), 0
    if path.is_file():
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                length += len(piece)
    return digest, length


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _mend(path: Path) -> None:
    """Ends a log that a killed run left without a final newline: completes a whole line, drops a torn one."""
    with path.open("rb+") if path.is_file() else contextlib.nullcontext() as file:
        if file is None or not (content := file.read()) or content.endswith(b"\n"):
            return
        tail = content.rpartition(b"\n")[2]
        if _parsed(tail) is not None:
            file.write(b"\n")
        else:
            file.truncate(len(content) - len(tail))


class Tracker(Protocol):
    """Whoever wants every event of a run, e.g. an experiment-tracking service."""

    def log(self, event: dict[str, Any]) -> None:
        """Receives one event as the event log wrote it."""

    def close(self) -> None:
        """Is told that no further event comes."""


class Trackers:
    """The trackers of a run: what one of them runs into must not cost the run.

    Args:
        trackers: are told in their order; one that fails is told nothing more.
        warn: is told why, in a sentence.
    """

    def __init__(self, trackers: Sequence[Tracker], warn: Callable[[str], None]) -> None:
        self._trackers = list(trackers)
        self._warn = warn

    def log(self, event: dict[str, Any]) -> None:
        """Passes an event on."""
        for tracker in list(self._trackers):
            try:
                tracker.log(event)
            except Exception as error:  # e.g. a service that is down
                self._trackers.remove(tracker)
                self._warn(f"tracking stopped, {type(tracker).__name__} failed: {error}")

    def close(self) -> None:
        """Says that no further event comes, once."""
        told, self._trackers = self._trackers, []
        for tracker in told:
            try:
                tracker.close()
            except Exception as error:
                self._warn(f"tracking did not end well, {type(tracker).__name__}: {error}")


class CsvTracker:
    """Writes every number of every event to a long table: time, event, task, epoch, name, value.

    Accuracies of the matrix are named ``accuracy_after_task_I``, since a row has one task only; those of a probe
    domain ``accuracy_on_DOMAIN_after_task_I``. Where it cannot be written, RequestError names it.
    """

    COLUMNS = ("time", "event", "task", "epoch", "name", "value")

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        try:
            fresh = not self._path.exists() or self._path.stat().st_size == 0
            self._file = self._path.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise write_error(error, self._path) from error
        self._writer = csv.writer(self._file)
        if fresh:
            self._write([self.COLUMNS])

    def log(self, event: dict[str, Any]) -> None:
        """Appends one row for each number in the event."""
        after = event.get("after_task")
        tail = "" if after is None else f"_after_task_{after}"
        if event.get("domain") is not None:  # without a task, only its name tells it from the other domains
            tail = f"_on_{event['domain']}{tail}"
        where = [event["time"], event["event"], event.get("task", ""), event.get("epoch", "")]
        self._write(
            [*where, f"{name}{tail}", repr(value)]
            for name, value in event.items()
            if name not in ("time", "task", "epoch", "after_task")
            and isinstance(value, int | float)
            and not isinstance(value, bool)
        )

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, rows: Iterable[Sequence[Any]]) -> None:
        try:
            self._writer.writerows(rows)
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # what is in its buffer would be tried again as the process ends
                self._file.close()
            raise write_error(error, self._path) from error
