"""Typed options with bounds: what a structured config field may hold."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A dataclass field whose value is checked before any work starts.

    Args:
        default: the value when nothing is said; None means that the key may be left empty.
        low, high: inclusive bounds of a number.
        above, below: exclusive bounds of a number.
        choices: the only values that are valid.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below, "choices": choices}
    metadata = {name: value for name, value in bounds.items() if value is not None}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def violation(value: Any, bounds: Any) -> str | None:
    """Says what would be valid where ``value`` breaks its ``bounds``, else None."""
    if value is None:
        return None
    choices = bounds.get("choices")
    if choices is not None:
        return None if value in choices else "one of: " + ", ".join(map(str, choices))
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    low, high, above, below = (bounds.get(name) for name in ("low", "high", "above", "below"))
    broken = (
        value != value
        or (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    )
    if not broken:
        return None
    rules = [("at least", low), ("above", above), ("at most", high), ("below", below)]
    return "a number " + " and ".join(f"{word} {bound:g}" for word, bound in rules if bound is not None)
