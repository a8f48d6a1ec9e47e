"""The two ways a request can go wrong, told apart by exit code."""

from __future__ import annotations

import re


class RequestError(Exception):
    """The request cannot be met; the command line ends with exit code 2.

    The message is one or two lines for a person: it names the configuration key (and the file, if
    there is one), what was found and what would work.

    Args:
        message: what was found, naming the key or the file.
        hint: what would work, shown on a line of its own.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = message
        self.hint = hint
        super().__init__(message if hint is None else f"{message}\n{hint}")

    @property
    def text(self) -> str:
        """What the command line writes: the name of the command, then message and hint, a line each."""
        return f"cl-run: {self.message}\n" + (f"        {self.hint}\n" if self.hint else "")


def shown(value: object, limit: int = 60) -> str:
    """A value as it would be typed, on one line and cut where it is long."""
    word = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    text = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in " ".join(word.split()))
    return text if len(text) <= limit else f"{text[:limit]}..."


def told(error: BaseException | str) -> str:
    """What a library's error says to a person, on one line: without Python's own words for types and classes."""
    said = " ".join(str(error).split())
    if isinstance(error, KeyError):
        return f"{said} is not known"
    said = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", said)
    said = re.sub(r"\b[A-Z]\w*(?:Error|Exception): ", "", said).replace("NoneType", "null")
    return said or "it gives no reason"


def nearest(word: str, known: list[str] | tuple[str, ...], limit: int = 12) -> str:
    """Returns a phrase that points from a misspelt ``word`` to the ``known`` ones."""
    import difflib

    if not known:
        return "it takes no keys"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    shown = ", ".join(sorted(known)[:limit]) + (", ..." if len(known) > limit else "")
    return f"one of: {shown}"
