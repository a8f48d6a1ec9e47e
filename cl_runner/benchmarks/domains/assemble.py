"""Domains put together: one store, one label space, tasks with their parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cl_runner.benchmarks.bad_samples import SKIP, STOP, BadSample, still_there
from cl_runner.benchmarks.domains.domain import Domain
from cl_runner.benchmarks.pixel_cache import PixelCache
from cl_runner.benchmarks.segments import Segments
from cl_runner.benchmarks.store import ImageStore, Part
from cl_runner.benchmarks.stream import Task
from cl_runner.view import View

Progress = Callable[[int, int], None]


class Assembly:
    """Adds domains one after another.

    Args:
        view: how images are prepared.
        cache: the folder of decoded images (None: memory alone) and its bound in bytes.
        progress: called while images are decoded.
        on_bad_sample: skip leaves out images that cannot be read; stop refuses the first.

    Attributes:
        notes: what the user should know.
        skipped: images that could not be read and were left out, a line each.
    """

    def __init__(
        self,
        view: View,
        cache: tuple[Path | None, int],
        progress: Progress | None = None,
        on_bad_sample: str = STOP,
    ) -> None:
        self.view, self.progress, self.on_bad_sample = view, progress, on_bad_sample
        self.notes: list[str] = []
        self.skipped: list[str] = []
        folder, limit = cache
        self.cache = PixelCache(folder, limit or None, say=self.note)
        self._images: list[Tensor] = []
        self._labels: list[np.ndarray] = []
        self._tasks: list[np.ndarray] = []
        self._members: list[tuple[Domain, dict[str, np.ndarray], int]] = []
        self._count = self._classes = 0

    def note(self, line: str) -> None:
        """Keeps a line for the user."""
        self.notes.append(line)

    def add(self, domain: Domain, parts: Mapping[str, np.ndarray], *, labelled: bool, training: bool = True) -> None:
        """Adds a domain, of which only the images of ``parts`` are decoded.

        Args:
            domain: its images, labels and names.
            parts: indices into its images, by part.
            labelled: whether the task of a sample is known.
            training: whether anything looks at training images, of which every class then needs one.

        Raises:
            RequestError: an image cannot be read, or with skip, no image of a class can.
        """
        wanted = np.unique(np.concatenate(list(parts.values())))
        bad: dict[int, BadSample] | None = {} if self.on_bad_sample == SKIP else None
        images = self.cache.pixels(domain.images, wanted, self.view, name=domain.name, progress=self.progress, bad=bad)
        if bad:
            needed = ("train", "test") if training else ("test",)
            parts = still_there(bad, domain.labels, parts, domain.class_names, domain.name, needed)
            self.skipped += [bad[index].line for index in sorted(bad)]
        index = len(self._members)
        self._images.append(images)
        self._labels.append(domain.labels + self._classes)
        self._tasks.append(np.full(len(domain.labels), index if labelled else 0))
        self._members.append((domain, {part: ids + self._count for part, ids in parts.items()}, self._classes))
        self._count += len(domain.labels)
        self._classes += len(domain.class_names)

    def finish(self) -> tuple[list[Task], ImageStore, int]:
        """The tasks in the order in which their domains were added, the store, and the number of classes."""
        used = np.concatenate([ids for _, parts, _ in self._members for ids in parts.values()])
        store = ImageStore(
            images=Segments(self._images),
            labels=np.concatenate(self._labels),
            tasks=np.concatenate(self._tasks),
            mean=self.view.mean,
            std=self.view.std,
            used=torch.from_numpy(np.unique(used)),
        )
        tasks = []
        for index, (domain, parts, first) in enumerate(self._members):
            train, validation, test = (
                Part(store, torch.from_numpy(np.sort(parts[name])), index) for name in ("train", "validation", "test")
            )
            tasks.append(
                Task(
                    index,
                    domain.name,
                    tuple(range(first, first + len(domain.class_names))),
                    domain.class_names,
                    len(train),
                    len(test),
                    train,
                    validation if len(validation) else None,
                    test,
                    domain.templates,
                )
            )
        return tasks, store, self._classes
