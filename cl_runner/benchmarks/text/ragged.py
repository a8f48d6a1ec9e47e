"""Many sequences of different lengths, end to end in one array: no loop over samples where they are cut or joined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """N sequences.

    Attributes:
        flat: all their values, (total,).
        offsets: sequence i is flat[offsets[i]:offsets[i + 1]]; int64, (N + 1,).
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int] | np.ndarray], dtype: type = np.int32) -> Ragged:
        """Copies sequences into one array."""
        rows: list[np.ndarray] = [np.asarray(row, dtype=dtype) for row in sequences]
        sizes = np.array([len(row) for row in rows], dtype=np.int64)
        return cls(np.concatenate(rows) if rows else np.empty(0, dtype), offsets_of(sizes))

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> Ragged:
        """The UTF-8 bytes of texts, uint8."""
        return cls.of((np.frombuffer(text.encode(), np.uint8) for text in texts), np.uint8)

    @classmethod
    def repeated(cls, ids: Sequence[int], count: int) -> Ragged:
        """The same sequence ``count`` times."""
        return cls(np.tile(np.asarray(ids, np.int32), count), np.arange(count + 1, dtype=np.int64) * len(ids))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """Length of each sequence, int64 (N,)."""
        return np.diff(self.offsets)

    def text(self, index: int) -> str:
        """A sequence of UTF-8 bytes as the text that it was."""
        return self[index].tobytes().decode()

    def take(self, which: np.ndarray) -> Ragged:
        """Some of the sequences, in the order asked for; ``which`` holds indices."""
        return self._gather(self.offsets[:-1][which], self.sizes[which])

    def head(self, most: int) -> Ragged:
        """Of each sequence at most its first ``most`` values."""
        return self._gather(self.offsets[:-1], np.minimum(self.sizes, most))

    def tail(self, most: int) -> Ragged:
        """Of each sequence at most its last ``most`` values."""
        sizes = np.minimum(self.sizes, most)
        return self._gather(self.offsets[1:] - sizes, sizes)

    def _gather(self, begins: np.ndarray, sizes: np.ndarray) -> Ragged:
        offsets = offsets_of(sizes)
        index = np.repeat(begins - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Ragged(self.flat[index], offsets)


def offsets_of(sizes: np.ndarray) -> np.ndarray:
    """Where sequences of these lengths begin, and where the last one ends; int64 (N + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def side_by_side(*parts: Ragged) -> Ragged:
    """Sequence i of the result is the sequences i of the parts, one after another."""
    offsets = offsets_of(np.stack([part.sizes for part in parts]).sum(axis=0))
    flat = np.empty(offsets[-1], parts[0].flat.dtype)
    begins = offsets[:-1]
    for part in parts:
        flat[np.repeat(begins - part.offsets[:-1], part.sizes) + np.arange(part.offsets[-1])] = part.flat
        begins = begins + part.sizes
    return Ragged(flat, offsets)


def end_to_end(parts: Sequence[Ragged]) -> Ragged:
    """The sequences of all parts, those of the first part first."""
    sizes = np.concatenate([part.sizes for part in parts])
    return Ragged(np.concatenate([part.flat for part in parts]), offsets_of(sizes))
