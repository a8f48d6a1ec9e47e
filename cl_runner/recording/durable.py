"""Files that are whole or not there: written beside their place, flushed to the disk, and moved there."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from cl_runner.recording.events import write_error

CHUNK = 1 << 20


def write_whole(place: Path, pieces: Iterable[bytes | memoryview], *, more: bool = False) -> str:
    """Writes a file in the place of whatever was there; a reader, or a killed process, never sees half of it.

    Args:
        place: the file.
        pieces: of its content.
        more: another file in this folder is written next, which makes sure of both their names.

    Returns:
        The SHA-256 of what was written, in hexadecimal.

    Raises:
        RequestError: it cannot be written, e.g. because the disk is full; what was there before still is.
    """
    partial, digest = place.with_name(f".{place.name}.partial"), hashlib.sha256()
    try:
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for piece in pieces:
                digest.update(piece)
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(file, rest) :]
            os.fsync(file)
        finally:
            os.close(file)
        partial.replace(place)
        if not more:
            flush_folder(place.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise write_error(error, place) from error
    return digest.hexdigest()


def flush_folder(folder: Path) -> None:
    """Makes sure that the names in a folder survive a machine that goes down."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(place: Path, length: int | None = None) -> str:
    """The SHA-256 of a file, or of its first bytes, in hexadecimal; that of fewer bytes where it is shorter."""
    digest = hashlib.sha256()
    with place.open("rb") as file:
        left = length
        while left is None or left > 0:
            piece = file.read(CHUNK if left is None else min(CHUNK, left))
            if not piece:
                break
            digest.update(piece)
            left = None if left is None else left - len(piece)
    return digest.hexdigest()
