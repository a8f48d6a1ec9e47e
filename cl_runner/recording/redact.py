"""Takes secrets out of what leaves the machine: keys that hold one, URLs with credentials, the environment's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_WORDS = {
    "token",
    "secret",
    "secrets",
    "password",
    "passwd",
    "passphrase",
    "credential",
    "credentials",
    "apikey",
}
_SECRET_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key"), ("auth", "key")}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USER_IN_URL = re.compile(r"(?P<scheme>\b[a-zA-Z][\w+.-]*://)[^\s/@'\"]+@")
_ASSIGNED = re.compile(r"(?P<key>[\w.-]+)(?P<sign>['\"]?\s*[=:]\s*)(?P<value>'[^']*'|\"[^\"]*\"|[^\s&,;'\"}\]]+)")
_BEARER = re.compile(r"(?i)\b(bearer\s+)\S+")
_SHORTEST = 8  # of a value of the environment; a shorter one would hide half the words of a text


def is_secret(key: str) -> bool:
    """Whether a key's name says that it holds a secret: `hf_token` and `apiKey` do, `tokenizer` does not."""
    words = [word.lower() for word in _WORDS.findall(key)]
    return bool(_SECRET_WORDS & set(words)) or bool(_SECRET_PAIRS & set(zip(words, words[1:], strict=False)))


def redact(content: Any) -> Any:
    """A copy of a configuration, or of any nest of mappings, lists and texts, without secrets."""
    if isinstance(content, Mapping):
        return {key: HIDDEN if is_secret(str(key)) and item else redact(item) for key, item in content.items()}
    if isinstance(content, list | tuple):
        return [redact(item) for item in content]
    return redact_text(content) if isinstance(content, str) else content


def redact_text(text: str) -> str:
    """A text without secrets: those of the environment, in URLs, and after a telling name and = or a colon."""
    for value in _secrets_of_environment():
        text = text.replace(value, HIDDEN)
    text = _BEARER.sub(rf"\g<1>{HIDDEN}", _USER_IN_URL.sub(rf"\g<scheme>{HIDDEN}@", text))

    def hide(found: re.Match[str]) -> str:
        telling = is_secret(found["key"]) and not found["key"].lower().startswith("credential")  # a word of messages
        quote = found["value"][0] if found["value"][0] in "'\"" else ""
        return f"{found['key']}{found['sign']}{quote}{HIDDEN}{quote}" if telling else found[0]

    return _ASSIGNED.sub(hide, text)


def _secrets_of_environment() -> list[str]:
    found = {value for key, value in os.environ.items() if is_secret(key) and len(value) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)
