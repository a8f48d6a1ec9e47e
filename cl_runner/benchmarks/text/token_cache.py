"""Prepared token ids on disk: an entry is one safetensors file, checked by its checksum and written in one step."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cl_runner.benchmarks import pixel_locks as locks

Arrays = dict[str, np.ndarray]
_ABOUT, _SUM = "about", "sha256"


class TokenCache:
    """Arrays by what they were made from.

    A cache that cannot be read or written costs time and a note, never the run.

    Args:
        folder: where entries lie; made when first needed.
        say: takes one line that the user should know.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder, self.say = folder, say

    def get(self, about: Mapping[str, Any], make: Callable[[], tuple[Arrays, str]]) -> tuple[Arrays, str]:
        """Returns an entry, made where there is none or it is damaged; one process makes it, others wait.

        Args:
            about: everything that decides the content, as JSON can hold it; its `name` begins the file's name.
            make: makes arrays, and one word that goes with them.
        """
        told = json.dumps(dict(about), sort_keys=True)
        place = self.folder / f"{about['name']}-{hashlib.sha256(told.encode()).hexdigest()[:24]}.safetensors"
        found = self._read(place, told)
        if found is not None:
            return found
        with contextlib.ExitStack() as stack:
            writable = self._lock(stack, place)
            found = self._read(place, told) if writable else None
            if found is not None:
                return found
            if place.exists():
                self.say(f"cache: {place} was damaged and is made again")
            arrays, word = make()
            if writable:
                self._write(place, arrays, {_ABOUT: told, "word": word})
        return arrays, word

    def _lock(self, stack: contextlib.ExitStack, place: Path) -> bool:
        """Holds the entry's lock, where the folder can be written."""
        try:
            stack.enter_context(locks.exclusive(self.folder, place.stem))
        except OSError as error:
            self.say(f"cache: {self.folder} cannot be written ({error.strerror}): token ids are not kept")
            return False
        return True

    def _read(self, place: Path, told: str) -> tuple[Arrays, str] | None:
        """An entry; None where it is missing, damaged or made from something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(place, framework="numpy") as entry:
                found = entry.metadata() or {}
                arrays = {name: entry.get_tensor(name) for name in entry.keys()}  # noqa: SIM118, no mapping
        except (OSError, SafetensorError, ValueError):
            return None
        whole = found.get(_ABOUT) == told and found.get(_SUM) == _checksum(arrays, found)
        return (arrays, found["word"]) if whole else None

    def _write(self, place: Path, arrays: Arrays, notes: dict[str, str]) -> None:
        """Writes beside the place and renames: nobody ever sees half of an entry."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        for left in self.folder.glob(f".new-{place.stem}-*"):  # of a process that was killed: we hold the lock
            left.unlink(missing_ok=True)
        try:
            with _beside(place) as aside:
                save_file(arrays, aside, {**notes, _SUM: _checksum(arrays, notes)})
        except (OSError, SafetensorError) as error:
            self.say(f"cache: {place} could not be written ({error}): token ids are not kept")


@contextlib.contextmanager
def _beside(place: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix=f".new-{place.stem}-", dir=place.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o666 & ~_umask())
        aside.replace(place)
    finally:
        aside.unlink(missing_ok=True)


def _umask() -> int:
    """The process's mask: a temporary file is its owner's alone, an entry may be shared."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _checksum(arrays: Arrays, notes: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps([notes[_ABOUT], notes["word"]]).encode() if _ABOUT in notes else b"")
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
