"""How a language model reads text: known to backbones, benchmarks and training alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

IGNORED = -100  # the target of a position that counts in no loss and no metric: torch's own default
TOKENS, COUNTED = 0, 1  # rows of a language model's input (B, 2, L): token ids, and 1 where the next token is a target


class Tokenizer(Protocol):
    """Turns texts into token ids and back.

    Attributes:
        name: as `backbone.tokenizer` says it.
        vocabulary: ids are 0 .. vocabulary - 1.
        start: ids that stand before every text (a beginning-of-sequence token, or none).
        eos: ends an answer, and separates packed texts.
        pad: fills up; never counts.
        fingerprint: of everything that decides how texts become ids.
    """

    name: str
    vocabulary: int
    start: tuple[int, ...]
    eos: int
    pad: int
    fingerprint: str

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        ...
