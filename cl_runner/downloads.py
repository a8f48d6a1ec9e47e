"""Files from the network: continued, tried again, checked, and only then given their name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from cl_runner.errors import RequestError, shown

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)``, in bytes."""

WAITS = (1.0, 3.0, 9.0)  # seconds before another attempt, as long as none of them brings anything new
TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # what a server says that may say something else in a moment
_NO_WAY = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH)


class _CutError(Exception):
    """The connection ended before the file did."""


@dataclass
class _Download:
    """One file on its way.

    Attributes:
        url: where it comes from.
        part: what there is of it; beside it lies what the server called that version of the file.
        progress: told of every piece.
        resumed: whether some of it comes from another attempt.
        total: bytes that it should have; 0 where the server does not say.
    """

    url: str
    part: Path
    progress: Progress | None
    resumed: bool = False
    total: int = 0

    @property
    def have(self) -> int:
        """Bytes that are there."""
        return self.part.stat().st_size if self.part.exists() else 0

    @property
    def version(self) -> Path:
        """The file that holds the server's name of the version that the part is of."""
        return self.part.with_name(f"{self.part.name}.version")

    def fetch(self) -> None:
        """Asks for what is missing and appends it.

        Raises:
            OSError, HTTPException: no connection, a refusal, or no room.
            _CutError: the connection ended early.
        """
        have = self.have
        try:
            answer = urlopen(Request(self.url, headers=self._headers(have)), timeout=TIMEOUT)
        except HTTPError as error:
            if error.code != 416 or not have:
                raise
            self.total = _whole(error.headers) or have  # nothing lies beyond what we have
            if self.total != have:
                self.forget()
                raise _CutError(f"the part of {have} bytes is no part of the {self.total} that there are") from error
            self.resumed = True
            return
        with answer:
            if answer.status == 206 and _start(answer.headers, have) != have:
                self.forget()
                raise _CutError("the server sent another piece than was asked for")
            self._append(answer, have if answer.status == 206 else 0)

    def _headers(self, have: int) -> dict[str, str]:
        headers = {"User-Agent": "cl-runner"}
        if have:
            headers["Range"] = f"bytes={have}-"
            with contextlib.suppress(OSError):
                if version := self.version.read_text(encoding="utf-8").strip():
                    headers["If-Range"] = version  # a file that was replaced is sent whole
        return headers

    def _append(self, answer: Any, have: int) -> None:
        """Writes what comes behind the first ``have`` bytes."""
        self.resumed = bool(have)
        length = answer.headers.get("Content-Length")
        self.total = have + int(length) if length and length.isdecimal() else 0
        if not have:
            tag = answer.headers.get("ETag", "")
            named = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")
            self.version.write_text(named, encoding="utf-8")
        with self.part.open("r+b") as stream:  # it exists: whoever downloads holds a lock on it
            stream.truncate(have)
            stream.seek(have)
            while piece := answer.read(_CHUNK):
                stream.write(piece)
                have += len(piece)
                if self.progress and self.total:
                    self.progress(have, self.total)
            stream.flush()
            os.fsync(stream.fileno())
        if have < self.total:
            raise _CutError(f"got {have} of {self.total} bytes")

    def forget(self) -> None:
        """Empties the part, to begin anew."""
        with self.part.open("r+b") as stream:
            stream.truncate(0)
        self.version.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes the part and what belongs to it."""
        self.part.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)


def download(
    url: str,
    target: Path,
    checksum: str,
    key: str,
    progress: Progress | None = None,
    by_hand: str | None = None,
) -> None:
    """Downloads to ``target.part``, going on where an earlier attempt stopped, and renames once the checksum matches.

    A broken connection is tried again as long as that brings something new. A server that ignores the wish for the
    rest, or that has replaced the file, is taken the whole of it. What was put together from several attempts and does
    not match is fetched once more in one go. Of several processes that want the same file one fetches it.

    Args:
        url: of the file.
        target: where it goes; its folder is made.
        checksum: an md5, or ``sha256:`` and its first digits; empty where nobody published one.
        key: the configuration key that asked for it, for messages.
        progress: told (bytes, bytes in all) where the server says how many there are.
        by_hand: what works without a network; None: a sentence that says which file to place where.

    Raises:
        RequestError: there is no network, no such file or no room, or the checksum differs. A part that may be gone
            on with stays; one that is complete and wrong goes.
    """
    named = f" ({'md5 ' if ':' not in checksum else ''}{checksum})" if checksum else ""
    hint = by_hand or (
        f"run the command again where there is a network, or place {target.name}{named} in {target.parent}"
    )
    job = _Download(url, target.with_name(f"{target.name}.part"), progress)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(job.part):
            if target.exists() and not job.have:  # another process was faster
                job.clear()
                return
            _complete(job, target, checksum, key, hint)
    except _CutError as error:
        raise RequestError(f"{key}: {job.part}: {error}", hint) from error
    except (OSError, HTTPException) as error:  # URLError is an OSError
        reason = error if isinstance(error, HTTPError) else getattr(error, "reason", None) or error
        raise RequestError(f"{key}: could not download {url} to {target}: {shown(reason, 200)}", hint) from error


def _complete(job: _Download, target: Path, checksum: str, key: str, hint: str) -> None:
    """Fetches all of it, compares the checksum and gives it its name."""
    for again in (True, False):
        _persistently(job)
        found = _digest(job.part, checksum)
        if checksum.rpartition(":")[2] == found:
            job.part.replace(target)
            job.version.unlink(missing_ok=True)
            return
        if again and job.resumed:
            job.forget()
            continue
        job.clear()
        kind = checksum.partition(":")[0] if ":" in checksum else "md5"
        expected = checksum.rpartition(":")[2]
        raise RequestError(f"{key}: {job.url} is truncated or altered: {kind} {found}, {expected} expected", hint)


def _persistently(job: _Download) -> None:
    """Fetches, and tries again where that may help."""
    most, waits = job.have, iter(WAITS)
    while True:
        try:
            return job.fetch()
        except (_CutError, OSError, HTTPException) as error:
            if isinstance(error, OSError) and not _may_pass(error, begun=bool(most)):
                raise
            if job.have > most:
                most, waits = job.have, iter(WAITS)
            wait = next(waits, None)
            if wait is None:
                raise
            time.sleep(wait)


def _may_pass(error: OSError, *, begun: bool) -> bool:
    """Whether another attempt may go better: a connection broke, or a server is busy."""
    if isinstance(error, HTTPError):
        return error.code in _BUSY
    reason = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
    if isinstance(reason, socket.gaierror) or reason.errno in _NO_WAY:
        return begun  # there is no network; where there was one a moment ago, it may come back
    return isinstance(reason, ConnectionError | TimeoutError) or reason.errno in (errno.ETIMEDOUT, errno.EPIPE)


def _digest(path: Path, checksum: str) -> str:
    """As many digits of the file's checksum as were published."""
    kind, _, digits = checksum.rpartition(":")
    digest = hashlib.new(kind or "md5", usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()[: len(digits)]


def _start(headers: Any, asked: int) -> int:
    """The first byte that a partial answer holds; what was asked for where it does not say."""
    found = re.match(r"\s*bytes\s+(\d+)-", headers.get("Content-Range", ""))
    return int(found[1]) if found else asked


def _whole(headers: Any) -> int:
    """The length of the whole file that a refusal names; 0 where it names none."""
    found = re.match(r"\s*bytes\s+\*/(\d+)", (headers or {}).get("Content-Range") or "")
    return int(found[1]) if found else 0


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Holds the part, making it where it is not there; waits for another process that has it."""
    while True:
        file = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), part.stat()):
                    yield
                    return
        finally:
            os.close(file)
