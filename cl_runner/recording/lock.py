"""One process a run folder: a lock file that says who is at work there, and that outlives nobody."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cl_runner.errors import RequestError
from cl_runner.recording.run_folder import _creation_error

NAME = ".lock"
SWEEP = "CL_RUN_SWEEP"  # environment variable: the sweep whose cell a process runs
UNREADABLE_FOR = 60.0  # seconds after which a lock without content is that of a process killed while it wrote it


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder as long as the body runs, and removes the folder at the end where nothing else is in it.

    The lock is a file made by O_EXCL. It names the process, when that began and the host; it is taken over where the
    process is gone on the same host, or where it was an earlier start of the same Slurm job.

    Raises:
        RequestError: another process holds it.
    """
    place = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _take(place)
    except OSError as error:
        raise _creation_error(error, folder) from error
    try:
        yield
    finally:
        with _one_at_a_time(folder):
            place.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a run is in it, as it should be
            folder.rmdir()
            folder.parent.rmdir()


def holder(folder: Path) -> dict[str, Any] | None:
    """Returns what the lock of a folder says (pid, born, host, ...) while its process is alive, else None."""
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
        age = time.time() - (folder / NAME).stat().st_mtime
    except OSError:
        return None
    return _holder(text, age)


def identity() -> dict[str, Any]:
    """Returns what tells this process from every other one on every machine."""
    pid = os.getpid()
    mine: dict[str, Any] = {"pid": pid, "born": _born(pid), "host": socket.gethostname()}
    if SWEEP in os.environ:
        mine["sweep"] = os.environ[SWEEP]
    if "SLURM_JOB_ID" in os.environ:
        mine["slurm"] = [os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")]
    return mine


def alive(other: dict[str, Any]) -> bool:
    """Whether a process that :func:`identity` described may still run; that of another host may."""
    if other.get("host") != socket.gethostname():
        return True
    pid = other.get("pid")
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process
        return True
    return _born(pid) == other.get("born")  # else the number was given to another process


def _take(place: Path) -> None:
    while True:
        # one at a time, so that nobody else sees it without its content
        with _one_at_a_time(place.parent), contextlib.suppress(FileExistsError):
            file = os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            with os.fdopen(file, "w", encoding="utf-8") as stream:
                json.dump(identity(), stream)
            return
        _clear(place)


def _clear(place: Path) -> None:
    """Removes a lock that nobody holds any more.

    Looking and removing are one step; another process that finds it stale, or its holder as it lets go, waits for its
    end. So nobody removes the lock that somebody else has made in the meantime.
    """
    with _one_at_a_time(place.parent) as alone:
        try:
            text, age = place.read_text(encoding="utf-8"), time.time() - place.stat().st_mtime
        except FileNotFoundError:
            return
        other = _holder(text, math.inf if alone else age)  # who made it and wrote nothing is gone, as nobody is at it
        if other is not None:
            who = f"process {other.get('pid', '?')} on {other.get('host', '?')}"
            raise RequestError(
                f"{place.parent}: {who} is at work in this run folder",
                f"call again when it has ended; if it is gone, remove {place}",
            )
        place.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[bool]:
    """Holds flock's lock of the folder, which needs no file and ends with its process; gives whether it could."""
    handle, alone = os.open(folder, os.O_RDONLY), False
    try:
        with contextlib.suppress(OSError):  # a network file system without locks: then as good as it gets
            fcntl.flock(handle, fcntl.LOCK_EX)
            alone = True
        yield alone
    finally:
        os.close(handle)


def _holder(text: str, age: float) -> dict[str, Any] | None:
    try:
        other = json.loads(text)
    except ValueError:
        other = None
    if not isinstance(other, dict):
        return {} if age < UNREADABLE_FOR else None
    own, slurm = identity().get("slurm"), other.get("slurm")
    if own and slurm and own[0] == slurm[0] and own[1] != slurm[1]:
        return None  # Slurm started this job again, maybe on another host, after it had ended that process
    return other if alive(other) else None


def _born(pid: int) -> str | None:
    """When a process began, in ticks since the machine started; None where there is no /proc, "" for one that ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in ("Z", "X") else fields[19]
