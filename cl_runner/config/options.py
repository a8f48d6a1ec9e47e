"""Typed options with bounds: what a structured config field may hold."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
import unicodedata
from dataclasses import field
from typing import Any

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_PLURALS = {int: "whole numbers", float: "numbers", bool: "true or false", str: "words", Any: "names or {KEY: VALUE}"}

# Bounds of keys that nature gives none: far beyond what anyone runs, and where arithmetic on them still holds.
SEEDS = 2**32 - 1  # what numpy's legacy generator takes
MOST_EPOCHS, MOST_STEPS, MOST_SAMPLES = 100_000, 10**9, 10**9
MOST_TRACED = 1000  # steps: some hundreds of operations each, of which a file holds every one
MOST_CLASSES, MOST_PIXELS, MOST_TOKENS = 1_000_000, 4096, 1_000_000
MOST_RANKS, MOST_BLOCKS, WIDEST = 65_536, 128, 65_536
LARGEST = 1e9  # of a weight in a loss
LONGEST_TEXT, LONGEST_NAME = 4096, 255  # of a path, and of a name in it in bytes, as file systems have it
_UNWRITABLE = ("Cc", "Cs")  # control characters and halves of a pair: no name of a file or of anything else


def option(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] | None = None,
    path: bool = False,
    empty: bool = False,
) -> Any:
    """A dataclass field whose value is checked before any work starts.

    Args:
        default: the value when nothing is said; None means that the key may be left empty.
        low, high: inclusive bounds of a number, or of every number of a list.
        above, below: exclusive bounds of the same.
        choices: the only values that are valid, or of which a list may consist.
        path: a text is a path, which the system has to be able to hold.
        empty: a text may be empty; where it may not, null says that there is none.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below, "choices": choices}
    bounds |= {"path": path or None, "empty": empty or None}
    metadata = {name: value for name, value in bounds.items() if value is not None}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def fits(value: Any, given: Any, bounds: Any) -> bool:
    """Whether a typed ``value`` keeps its ``bounds`` and says what was ``given``: 2.5 is not a whole number."""
    if value is None:
        return True
    if isinstance(given, dict):  # a mapping is free; the component itself knows its keys
        return all(_is_writable(item) for pair in given.items() for item in pair)
    if not isinstance(value, (str, int, float)):  # a list
        return all(fits(item, other, bounds) for item, other in zip(value, given, strict=True))
    if isinstance(value, bool):
        return isinstance(given, (bool, str))
    if isinstance(given, float) and given != value:  # not equal to itself either where it is no number
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if "choices" in bounds:
        return value in bounds["choices"]
    if isinstance(value, str):  # a word where a number would have been possible too
        return _is_text(value, bounds)
    low, high, above, below = (bounds.get(name) for name in ("low", "high", "above", "below"))
    return not (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    )


def _is_text(value: str, bounds: Any) -> bool:
    """Whether a text says something, in letters that files can hold: an empty one would be no value at all."""
    if not value.strip():
        return not value and "empty" in bounds
    if len(value) > LONGEST_TEXT or not _is_writable(value):
        return False
    return "path" not in bounds or all(len(part.encode()) <= LONGEST_NAME for part in value.split("/"))


def _is_writable(value: Any) -> bool:
    """Whether every text in a value has only letters that a file can hold."""
    if isinstance(value, dict):
        return all(_is_writable(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple)):
        return all(map(_is_writable, value))
    return not any(unicodedata.category(letter) in _UNWRITABLE for letter in str(value))


def takes(kind: Any, bounds: Any) -> str:
    """Says in words what an option of type ``kind`` may hold, e.g. "a whole number at least 1, or null"."""
    parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    empty = ", or null" if types.NoneType in parts else ""
    parts = tuple(part for part in parts if part is not types.NoneType)
    if typing.get_origin(parts[0]) is dict or dataclasses.is_dataclass(parts[0]):
        words = "keys with values, {KEY: VALUE}"
    elif typing.get_origin(parts[0]) is list:
        (item,) = typing.get_args(parts[0])
        words = f"a list of {_PLURALS[item]}"
        if "choices" in bounds:
            words = "a list of " + ", ".join(map(str, bounds["choices"]))
    elif "choices" in bounds:
        words = "one of: " + ", ".join(map(str, bounds["choices"]))
    else:
        words = " or ".join("a path" if part is str and "path" in bounds else _WORDS[part] for part in parts)
    rules = [("at least", "low"), ("above", "above"), ("at most", "high"), ("below", "below")]
    limits = " and ".join(f"{word} {bounds[name]:.10g}" for word, name in rules if name in bounds)
    return words + (f" {limits}" if limits else "") + empty
