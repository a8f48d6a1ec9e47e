"""Images that cannot be read: named and refused, or left out and counted (`on_bad_sample: stop | skip`)."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cl_runner.benchmarks.stream import TaskStream
from cl_runner.errors import RequestError, shown

INTACT = "replace the file with an intact one, or remove it"
OR_SKIP = f"{INTACT}; on_bad_sample=skip goes without such images"
STOP, SKIP = "stop", "skip"
NAMED = 3  # files that a warning names
# what a file can be blamed for; others (too many open files, a disk that fails) say something of the machine, and
# whoever left images out over them would learn from another stream every time
_OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)


class BadSample(RequestError):
    """One image cannot be read, through its own fault: the only error that `on_bad_sample=skip` passes over.

    Attributes:
        place: the file, or what stands for it.
        reason: in a few words.
    """

    place = reason = ""

    @property
    def line(self) -> str:
        """The image and what is wrong with it, on one line and without what a terminal would obey."""
        return "".join(one if one.isprintable() else "?" for one in f"{self.place}: {self.reason}")


@dataclass(frozen=True)
class ImageStream(TaskStream):
    """A stream of images that were read from files.

    Attributes:
        skipped: images that could not be read and that the stream goes without, a line each.
    """

    skipped: tuple[str, ...] = ()


def undecodable(path: Path | str, key: str, error: Exception, hint: str = INTACT) -> RequestError:
    """Returns the refusal for an image at which reading failed with ``error``: a BadSample where it is to blame.

    Args:
        path: the file, or what stands for it.
        key: the configuration key that says where it lies.
        error: what Pillow, a reader or the system raised.
        hint: what would work.
    """
    if isinstance(error, MemoryError):
        return RequestError(f"{key}: no memory is left to decode {path}", "free memory, or make the image smaller")
    number = error.errno if isinstance(error, OSError) else None
    told = error.strerror if isinstance(error, OSError) and error.strerror else error
    reason = shown(told, 200) or type(error).__name__
    if number is not None and number not in _OF_THE_FILE:
        return RequestError(f"{key}: cannot read {path}: {reason}", "check the disk and the limits of the system")
    reason = "not an image that Pillow knows" if "cannot identify image file" in reason else reason
    refusal = BadSample(f"{key}: {path} does not decode: {reason}", hint)
    refusal.place, refusal.reason = str(path), reason
    return refusal


def warning(skipped: Sequence[str]) -> tuple[str, ...]:
    """One line about the images that were left out; none where there are none."""
    if not skipped:
        return ()
    images = "1 image" if len(skipped) == 1 else f"{len(skipped)} images"
    more = f"; and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    return (f"on_bad_sample=skip: the stream goes without {images}: {'; '.join(skipped[:NAMED])}{more}",)


def still_there(
    bad: Mapping[int, BadSample],
    labels: np.ndarray,
    parts: Mapping[str, np.ndarray],
    names: Sequence[str],
    where: str,
    needed: Iterable[str] = ("train", "test"),
) -> dict[str, np.ndarray]:
    """The images of each part without the bad ones.

    Args:
        bad: by the image's index.
        labels: of all images, (N,).
        parts: indices by part.
        names: of the classes, by label.
        where: the dataset, for messages.
        needed: parts that have to keep an image of every class that they have.

    Raises:
        RequestError: a class, or all of a part, would be gone.
    """
    kept = {part: ids[~np.isin(ids, list(bad))] for part, ids in parts.items()}
    for part, ids in parts.items():
        lost = np.setdiff1d(labels[ids], labels[kept[part]]) if part in needed else np.empty(0, dtype=np.int64)
        if not len(lost) and (len(kept[part]) or not len(ids) or part == "validation"):
            continue
        gone = lost[0] if len(lost) else labels[ids[0]]
        first = next(bad[int(index)] for index in ids if labels[index] == gone and int(index) in bad)
        raise RequestError(
            f"on_bad_sample=skip: no {part} image of class '{names[int(gone)]}' in {where} can be read: {first.line}",
            "replace its files with intact ones, or take the class away",
        )
    return kept
