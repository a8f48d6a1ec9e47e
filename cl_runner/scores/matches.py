"""Answers that are right or wrong."""

from __future__ import annotations


def exact_match(prediction: str, reference: str) -> float:
    """Returns 1 where both are the same text, else 0; so does what is empty.

    Blanks around them do not count: whether a first token carries one depends on the tokenizer. TRACE's own models
    have one that drops it.
    """
    said, wanted = prediction.strip(), reference.strip()
    return float(bool(wanted) and said == wanted)


def first_character(prediction: str, reference: str) -> float:
    """Returns 1 where both begin with the same character: the letter of a choice, before its explanation."""
    return exact_match(prediction.strip()[:1], reference.strip()[:1])
