"""Images decoded by several threads: in order, and with the same error whatever the threads do."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cl_runner.benchmarks.bad_samples import OR_SKIP, BadSample, undecodable
from cl_runner.benchmarks.pixel_entry import NORESERVE, Content, threads
from cl_runner.errors import RequestError
from cl_runner.view import View, apply

if TYPE_CHECKING:
    from cl_runner.benchmarks.domains.domain import ImageSet

Result = TypeVar("Result")
MEMINFO = Path("/proc/meminfo")
PROBED = 64  # images that are tried before anything is locked
# what Pillow and the readers raise over damaged data; anything else is a bug and is not called an image's fault
FAULTS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Job:
    """What was asked for: some images of a set, seen by a view.

    Attributes:
        ids: int64, sorted, each once.
        content: how the result is named on disk.
        progress: called with (images decoded, images to decode).
        bad: takes images that cannot be read, by index; None: the first of them is refused.
    """

    images: ImageSet
    ids: np.ndarray
    view: View
    content: Content
    progress: Callable[[int, int], None] | None = None
    bad: dict[int, BadSample] | None = None

    def decoded(
        self, ids: np.ndarray, sink: Callable[[int, np.ndarray], Result]
    ) -> Generator[tuple[int, Result], None, None]:
        """Decodes images, gives each to ``sink(id, uint8 (3, S, S))`` in a thread, and yields (id, result) in order.

        The set's ``open`` is called from several threads at once. Close the iterator where it is left early.

        Raises:
            RequestError: an image is damaged; of several the first in the order of ids is named.
        """
        waiting: deque[tuple[int, Future[Result]]] = deque()
        with ThreadPoolExecutor(threads()) as pool:
            try:
                for done, index in enumerate(ids.tolist()):
                    waiting.append((index, pool.submit(lambda index: sink(index, self._decode(index)), index)))
                    if done >= 4 * threads():  # so many are ahead of the one that is waited for
                        yield from self._next(waiting, done - len(waiting) + 2, len(ids))
                while waiting:
                    yield from self._next(waiting, len(ids) - len(waiting) + 1, len(ids))
            finally:
                for _, future in waiting:
                    future.cancel()

    def without_bad(self, few: np.ndarray) -> Job:
        """The job without those of a few images that cannot be read, where these are passed over.

        Nothing remembers across runs what could not be read, as rights and readers change while a file stays the same;
        a cache that only lacks such images is complete, and is not written to.
        """
        if self.bad is None or not 0 < len(few) <= PROBED:
            return self
        for index in few.tolist():
            try:
                self._decode(index)
            except BadSample as error:
                self.bad[index] = error
        return replace(self, ids=self.ids[~np.isin(self.ids, list(self.bad))])

    def _next(
        self, waiting: deque[tuple[int, Future[Result]]], done: int, total: int
    ) -> Generator[tuple[int, Result], None, None]:
        index, future = waiting.popleft()
        try:
            result = future.result()
        except BadSample as error:
            if self.bad is None:
                raise
            self.bad[index] = error
            return
        if self.progress is not None:
            self.progress(done, total)
        yield index, result

    def _decode(self, index: int) -> np.ndarray:
        try:
            return np.ascontiguousarray(apply(self.view, self.images.open(index)).transpose(2, 0, 1))
        except MemoryError as error:
            raise too_large(self.content, 1) from error
        except FAULTS as error:
            files = getattr(self.images, "paths", None)
            place = files[index] if files else f"image {index}"
            raise undecodable(place, self.content.name, error, OR_SKIP) from error


def empty_memory(content: Content, count: int) -> mmap.mmap:
    """Memory for all images of a set, taken page by page as images are written: the rest are holes and cost nothing.

    Args:
        content: of the set.
        count: images that will be written, for the message.

    Raises:
        RequestError: the system refuses.
    """
    size = content.count * content.image_bytes
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    except (MemoryError, OSError, OverflowError) as error:
        raise too_large(content, count) from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # numpy's zeros ask for huge pages: one image would take 2 MB of a hole
    return memory


def as_pixels(memory: mmap.mmap, content: Content) -> Tensor:
    """Memory as uint8 (N, 3, S, S), without a copy; it is given back when the last tensor over it is gone."""
    return torch.from_numpy(np.frombuffer(memory, dtype=np.uint8).reshape(content.shape))


class InMemory:
    """Which images of a set this process holds in memory of its own; it keeps them until it is let go of.

    Attributes:
        pixels: uint8 (N, 3, S, S); rows that are not ``ready`` are holes.
        ready: bool (N,).
    """

    def __init__(self, content: Content, count: int) -> None:
        self.content, self.ready = content, np.zeros(content.count, dtype=bool)
        memory = empty_memory(content, count)
        self.pixels, self._memory = as_pixels(memory, content), weakref.ref(memory)

    @property
    def held_bytes(self) -> int:
        """Memory that its images take."""
        return int(self.ready.sum()) * self.content.image_bytes

    def idle(self) -> bool:
        """Lets go of the pixels, and says whether nobody else holds them; where somebody does, they are taken back."""
        del self.pixels
        memory = self._memory()
        if memory is None:
            return True
        self.pixels = as_pixels(memory, self.content)
        return False


def free_bytes(held: int) -> int:
    """Memory that this process may still take: what the kernel has available, else the machine's less ``held``.

    What is available is without what is held already; a process that takes more is killed in the middle of decoding.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):  # another system has no such file
        for line in MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return max(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - held, 0)


def too_large(content: Content, count: int, free: int | None = None, held: int = 0) -> RequestError:
    """The error of images that do not fit into memory, of which ``free`` bytes are left and others hold ``held``."""
    size = content.geometry["size"]
    beside = f": {free / 1e9:.1f} GB are free, other images hold {held / 1e9:.1f} GB" if free is not None else ""
    return RequestError(
        f"benchmark.image_size={size}: {count} images of {content.name}, {count * content.image_bytes / 1e9:.1f} GB, "
        f"do not fit into memory{beside}",
        "ask for a smaller benchmark.image_size or for fewer images, or keep them on disk with benchmark.cache_gb",
    )
