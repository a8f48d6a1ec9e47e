"""Decoded, resized images, kept as uint8 in a bounded folder: later epochs and later runs open no image file."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from cl_runner.benchmarks import pixel_locks as locks
from cl_runner.benchmarks import shelf
from cl_runner.benchmarks.bad_samples import BadSample
from cl_runner.benchmarks.decoding import InMemory, Job, as_pixels, empty_memory, free_bytes, too_large
from cl_runner.benchmarks.pixel_entry import Content, Entry
from cl_runner.view import View

if TYPE_CHECKING:
    from cl_runner.benchmarks.domains.domain import ImageSet

KEPT = 24  # results that a process remembers: two streams of the largest number of domains
COMMIT_SECONDS = 10.0  # at most so much decoding is lost when a process is killed
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
Progress = Callable[[int, int], None]


@dataclass
class _Kept:
    """A result of this process: pixels, the file that they are mapped from, and which were decoded or verified here."""

    pixels: Tensor
    ready: np.ndarray
    origin: tuple[int, int]


Key = TypeVar("Key", tuple[Path, str], str)
Result = TypeVar("Result", _Kept, InMemory)


class _NoRoomError(Exception):
    """The cache's bound leaves no room for what is asked."""


_kept: OrderedDict[tuple[Path, str], _Kept] = OrderedDict()
_in_ram: OrderedDict[str, InMemory] = OrderedDict()
_one_at_a_time = threading.RLock()


class PixelCache:
    """Decoded images by set, fingerprint and geometry of the view.

    An image is decoded once and verified by its checksum when a process first uses it. Where the folder cannot hold
    the images (read-only, full, too small a bound) they are kept in memory. Any part of the folder may be deleted at
    any time.

    Args:
        folder: of the entries, made when it is needed; None keeps everything in memory.
        limit_bytes: bound of the folder's use of disk; the least recently used entries go, unless a living process
            uses them. None: no bound.
        say: told in one line what the user should know: damage that was repaired, a fall back to memory, a wait for
            another process. By default it is a Python warning.
    """

    def __init__(
        self, folder: Path | None, limit_bytes: int | None = None, say: Callable[[str], None] = warnings.warn
    ) -> None:
        self.folder = None if folder is None else Path(folder).absolute()
        self.limit_bytes, self.say = limit_bytes, say

    def pixels(
        self,
        images: ImageSet,
        wanted: np.ndarray,
        view: View,
        *,
        name: str,
        progress: Progress | None = None,
        bad: dict[int, BadSample] | None = None,
    ) -> Tensor:
        """Returns the set's pixels, uint8 (N, 3, S, S): row i is image i, for every i in ``wanted``.

        Other rows are undefined. The tensor may be shared with other callers and be mapped from a file: nobody may
        write into it.

        Args:
            images: their ``open`` is called from several threads.
            wanted: indices, in any order, repeated or not.
            view: of which only the geometry matters.
            name: of the set, in messages and in the name of its folder.
            progress: called with (images decoded, images to decode), from the calling thread.
            bad: takes images that cannot be read, whose rows are undefined too; None: the first of them is refused.

        Raises:
            IndexError: an index is not in the set.
            RequestError: an image is damaged, the first in order is named; or the images do not fit into memory.
        """
        count = len(images)
        ids = np.unique(np.asarray(wanted, dtype=np.int64))
        if len(ids) and (ids[0] < 0 or ids[-1] >= count):
            raise IndexError(f"{name} has {count} images, image {ids[0] if ids[0] < 0 else ids[-1]} is asked for")
        content = Content(name, images.fingerprint(), count, view.geometry)
        if not count:
            return torch.zeros(content.shape, dtype=torch.uint8)
        if not len(ids):
            return as_pixels(empty_memory(content, 0), content)
        job = Job(images, ids, view, content, progress, bad)
        with _one_at_a_time:
            return _in_memory(job) if self.folder is None else self._on_disk(self.folder, job)

    def entries(self) -> list[shelf.Described]:
        """What is on disk, the least recently used first."""
        return [] if self.folder is None else shelf.described(self.folder)

    def size(self) -> int:
        """Bytes that the folder takes on disk; holes take none."""
        return 0 if self.folder is None else shelf.disk_use(self.folder)

    def clear(self) -> int:
        """Deletes all entries and returns the bytes that were freed; processes that use some go on with them."""
        return 0 if self.folder is None else shelf.clear(self.folder)

    # ------------------------------------------------------------------------------------------------- disk

    def _on_disk(self, folder: Path, job: Job) -> Tensor:
        key, entry = (folder, job.content.key), Entry(folder, job.content)
        held = _kept.get(key)
        if held is not None and held.ready[job.ids].all():
            entry.touch()
            return _keep(_kept, key, held)
        use = locks.shared(folder, job.content.key)
        ready = np.zeros(job.content.count, dtype=bool)
        try:
            if entry.load():
                if held is not None and held.origin == entry.identity():
                    ready |= held.ready
                self._verify(entry, job.ids, ready)
                job = job.without_bad(job.ids[~ready[job.ids]])
            if not ready[job.ids].all():
                with locks.exclusive(folder, f"{job.content.key}.fill", lambda: self._wait(job)):
                    self._complete(entry, job, ready, use)
            result = _Kept(entry.mapped(use), ready, entry.identity())
        except (OSError, _NoRoomError) as error:
            return self._instead(entry, job, ready, use, error)
        except BaseException:
            _release(entry, use)
            raise
        entry.touch()
        entry.close()
        return _keep(_kept, key, result)

    def _wait(self, job: Job) -> None:
        self.say(f"{job.content.name}: another process is decoding its images, waiting for it")

    def _verify(self, entry: Entry, ids: np.ndarray, ready: np.ndarray) -> np.ndarray:
        """Marks what is there and whole as ready, and returns what is damaged."""
        check = ids[entry.present[ids] & ~ready[ids]]
        damaged = entry.damaged(check)
        ready[check] = True
        ready[damaged] = False
        return damaged

    def _complete(self, entry: Entry, job: Job, ready: np.ndarray, use: int | None) -> None:
        """Decodes what is missing; the fill lock is held, and another process may have decoded it just now."""
        seen = entry.mapped() if entry.is_open else None  # while it is mapped, no other file gets its number
        before = entry.identity() if seen is not None else None
        if not entry.load():
            if entry.folder.exists():
                self.say(f"{entry.folder} is damaged; its images are decoded again")
            entry.begin()
        if entry.identity() != before:
            ready[:] = False
        del seen
        damaged = self._verify(entry, job.ids, ready)
        if len(damaged):
            self.say(f"{len(damaged)} images in {entry.folder} do not match their checksums and are decoded again")
            entry.present[damaged] = False
        if ready[job.ids].all():
            return
        self._make_room(entry, job, ready, use)
        missing = job.ids[~ready[job.ids]]
        committed = time.monotonic()
        try:
            with contextlib.closing(job.decoded(missing, entry.put)) as results:
                for index, checksum in results:
                    entry.sums[index], entry.present[index], ready[index] = checksum, True, True
                    if time.monotonic() - committed > COMMIT_SECONDS:
                        entry.commit()
                        committed = time.monotonic()
        except BaseException:  # what was decoded is kept, whatever stopped it
            with contextlib.suppress(OSError):
                entry.commit()
            raise
        with contextlib.suppress(FileNotFoundError):  # deleted while it was filled: the open file still holds it all
            entry.commit()

    def _make_room(self, entry: Entry, job: Job, ready: np.ndarray, use: int | None) -> None:
        """Deletes what was least recently used until the missing images fit, and takes their space on disk.

        The room lock makes counting and taking one step, so that two processes cannot both take the last room.
        """
        content, cache = job.content, entry.cache
        missing = job.ids[~ready[job.ids]]
        with locks.exclusive(cache, "room"):
            if self.limit_bytes is not None:
                least = content.disk_bytes(job.ids) + content.empty_bytes
                if least > self.limit_bytes:
                    raise _NoRoomError(f"they take {_gb(least)}, more than its limit of {_gb(self.limit_bytes)}")
                if not self._evict(entry, content.disk_bytes(missing)):
                    if use is None or not locks.alone(use):
                        raise _NoRoomError(f"others use what fills its limit of {_gb(self.limit_bytes)}")
                    entry.begin()  # its own other images are what is in the way
                    ready[:] = False
                    missing = job.ids
                    if not self._evict(entry, content.disk_bytes(missing)):
                        raise _NoRoomError(f"others use what fills its limit of {_gb(self.limit_bytes)}")
            entry.reserve(missing)

    def _evict(self, entry: Entry, needed: int) -> bool:
        """Whether ``needed`` bytes fit after other entries, the least recently used first, were deleted as needed."""
        cache, limit = entry.cache, self.limit_bytes or 0
        shelf.sweep(cache)
        if shelf.disk_use(cache) + needed <= limit:
            return True
        _kept.clear()  # this process must not stand in its own way
        for other in shelf.described(cache):
            gone = other.folder != entry.folder and locks.remove_unused(cache, other.folder.name)
            if gone and shelf.disk_use(cache) + needed <= limit:
                return True
        return False

    def _instead(self, entry: Entry, job: Job, ready: np.ndarray, use: int | None, error: Exception) -> Tensor:
        """The images in memory: those that the entry holds are copied, and an entry that fills the disk is deleted."""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.say(f"{entry.cache} cannot hold the images of {job.content.name}, they stay in memory: {reason}")
        known = None
        with contextlib.suppress(OSError):  # the images are decoded, then
            known = entry.mapped() if entry.is_open and ready.any() else None
        empty = entry.is_open and not entry.present.any()
        useless = empty or (isinstance(error, OSError) and error.errno in FULL)
        if useless and use is not None and locks.alone(use):
            with contextlib.suppress(OSError):
                entry.remove()
        _release(entry, use)
        return _in_memory(job, known, ready)


def forget() -> None:
    """Lets go of everything that this process remembers; tensors that are in use stay."""
    with _one_at_a_time:
        _kept.clear()
        _in_ram.clear()


def _in_memory(job: Job, known: Tensor | None = None, whole: np.ndarray | None = None) -> Tensor:
    """Decodes into memory what this process has not decoded yet; ``known`` rows that are ``whole`` are copied."""
    key = job.content.key
    held = _in_ram.get(key)
    _make_room(job, job.ids if held is None else job.ids[~held.ready[job.ids]])
    if held is None:
        held = InMemory(job.content, len(job.ids))
    target = held.pixels.numpy()
    if known is not None and whole is not None:
        for index in job.ids[whole[job.ids] & ~held.ready[job.ids]].tolist():
            target[index] = known[index].numpy()
            held.ready[index] = True
    missing = job.ids[~held.ready[job.ids]]
    with contextlib.closing(job.decoded(missing, target.__setitem__)) as results:
        for index, _ in results:
            held.ready[index] = True
    return _keep(_in_ram, key, held)


def _make_room(job: Job, missing: np.ndarray) -> None:
    """Lets go of other sets that nobody uses, the least recently used first, until the missing images fit into memory.

    Nothing is reserved, and the kernel would kill the process in the middle.

    Raises:
        RequestError: they do not fit.
    """
    needed = len(missing) * job.content.image_bytes
    others = [key for key in _in_ram if key != job.content.key]
    while needed > (free := free_bytes(held := sum(kept.held_bytes for kept in _in_ram.values()))):
        if not others:
            raise too_large(job.content, len(missing), free, held)
        if _in_ram[others[0]].idle():
            del _in_ram[others[0]]
        del others[0]


def _keep(kept: OrderedDict[Key, Result], key: Key, held: Result) -> Tensor:
    kept[key] = held
    kept.move_to_end(key)
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return held.pixels


def _release(entry: Entry, use: int | None) -> None:
    entry.close()
    if use is not None:
        os.close(use)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
