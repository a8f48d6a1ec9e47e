"""The task stream of texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cl_runner.benchmarks.stream import TaskStream

if TYPE_CHECKING:
    from cl_runner.tokens import Tokenizer


@dataclass(frozen=True)
class LanguageStream(TaskStream):
    """Domains of text in order; a task's class is the domain itself.

    Attributes:
        length: positions that the longest sequence may take, an answer included.
        answer_length: most tokens that are generated for an answer; None where no task generates.
        metrics: what a task is scored by: `token_accuracy`, or a name of `cl_runner.scores.METRICS`.
        tokenizer: turned the texts into ids; absent in an outline.
    """

    length: int = 0
    answer_length: int | None = None
    metrics: tuple[str, ...] = ()
    tokenizer: Tokenizer | None = None
