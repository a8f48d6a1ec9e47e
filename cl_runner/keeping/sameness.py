"""Whether a run that is taken up has the data that it began with."""

from __future__ import annotations

import hashlib

from torch import Tensor

from cl_runner.benchmarks.stream import TaskStream


def fingerprint_of(stream: TaskStream) -> str:
    """The SHA-256 of the stream's names, classes, splits and labels; the samples themselves are not read."""
    assert stream.store is not None, "an outline has no data"
    digest = hashlib.sha256()
    for task in (*stream.tasks, *stream.probes):
        digest.update(repr((task.name, list(task.classes), list(task.class_names))).encode())
        for part in (task.train, task.validation, task.test):
            digest.update(b"-" if part is None else _bytes(part.ids))
    digest.update(_bytes(stream.store.host_labels))
    return digest.hexdigest()


def _bytes(numbers: Tensor) -> bytes:
    return bytes(numbers.cpu().contiguous().numpy().tobytes())
