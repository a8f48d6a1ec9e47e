"""Answers that are nearly right, through the libraries that measure it: ROUGE-L and the similarity of edited texts."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cl_runner.optional import library

_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)
_BARE = {"<NUM_LIT>": "0", "<STR_LIT>": "", "<CHAR_LIT>": ""}


def rouge_l(prediction: str, reference: str) -> float:
    """Returns the F measure of ROUGE-L (Lin, 2004) as the package `rouge` computes it.

    Sentences end at full stops, words at blanks, upper and lower case differ; words count once. Identical texts reach
    1 - 5e-9, for the package adds 1e-8 to a denominator. What has no words scores 0, which the package refuses.

    Raises:
        RequestError: the package is missing.
    """
    if not _has_words(prediction) or not _has_words(reference):
        return 0.0
    with _deep_enough(len(prediction.split()) + len(reference.split())):
        found = rouge_of_package().get_scores(prediction, reference)
    return min(float(found[0]["rouge-l"]["f"]), 1.0)


def edit_similarity(prediction: str, reference: str) -> float:
    """Returns the similarity of two lines of code by rapidfuzz, 1 - edits / (both lengths), once literals are unmasked.

    An edit inserts or deletes a character. In Py150 literals are masked: ``<STR_LIT:text>`` is ``text``, a bare
    ``<NUM_LIT>`` is 0, a bare ``<STR_LIT>`` nothing. What is empty scores 0.

    Raises:
        RequestError: rapidfuzz is missing.
    """
    said, wanted = unmasked(prediction), unmasked(reference)
    return ratio_of_rapidfuzz()(said, wanted) / 100 if said and wanted else 0.0


def unmasked(code: str) -> str:
    """Returns code with its masked literals put back, as far as the masks say what they were."""
    for mask, literal in _BARE.items():
        code = code.replace(mask, literal)
    return _LITERAL.sub(r"\1", code)


def rouge_of_package() -> Any:
    """Returns the package's object for ROUGE-L.

    Raises:
        RequestError: the package is missing.
    """
    return library("rouge", "the score rouge_l", "text").Rouge(metrics=["rouge-l"])


def ratio_of_rapidfuzz() -> Callable[[str, str], float]:
    """Returns rapidfuzz's similarity, 0 to 100.

    Raises:
        RequestError: rapidfuzz is missing.
    """
    ratio: Callable[[str, str], float] = library("rapidfuzz.fuzz", "the score edit_similarity", "text").ratio
    return ratio


def _has_words(text: str) -> bool:
    return bool(text.replace(".", " ").split())


@contextmanager
def _deep_enough(words: int) -> Iterator[None]:
    """The package walks back through a table by recursion, for long sentences deeper than Python goes."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, words + before))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
