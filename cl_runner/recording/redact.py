"""Takes secrets out of what is written or sent: those under telling keys, in URLs, and of the environment."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

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
    "sig",
    "signature",
}
_SECRET_ENDS = ("password", "passwd", "apikey", "accesskey", "secret")  # PGPASSWORD is one word
_SECRET_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key"), ("auth", "key")}
# of a tokenizer's special tokens, which everybody knows
_KNOWN_TOKENS = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "image", "special", "start", "end", "first", "last"}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# a backslash stands where Hydra writes one before a sign of an override
_USER_IN_URL = re.compile(r"(?P<scheme>\b[a-zA-Z][\w+.-]*\\?://)(?P<user>[^\s/@'\"]+)@")
_ASSIGNED = re.compile(r"(?P<key>[\w.-]+)(?P<sign>['\"]?\s*\\?[=:]\s*)(?P<value>'[^']*'|\"[^\"]*\"|[^\s&,;'\"}\]]+)")
_IN_QUERY = re.compile(r"(?P<sign>[?&;#])(?P<key>[\w.%-]+)(?P<equals>\\?=)(?P<value>[^\s&;#'\"<>\])}]+)")
_AUTHORISED = re.compile(r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?(?:basic|digest|token)\s+|bearer\s+)[^\s'\"]+")
_SHAPES = re.compile(  # what the keys of well-known services look like, wherever they stand
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{20,}"
    r"|wandb_v\d_[\w-]{20,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+)"
)
_NUMBER = re.compile(r"[-+]?[\d.]+(?:[eE][-+]?\d+)?%?|None|null|true|false|True|False")
_REFERENCE = re.compile(r"\$\{oc\.env:\w+\}?")  # a closing brace ends what is looked at in a text
_LONG_NUMBER = 6  # digits
_SHORTEST = 8  # of a value of the environment; a shorter one would hide half the words of a text


@functools.lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Whether a key's name says that it holds a secret: `hf_token` and `apiKey` do, `tokenizer`, `pad_token` do not."""
    words = [word.lower() for word in _WORDS.findall(key)]
    for before, word in zip(["", *words], words, strict=False):
        if word in _SECRET_WORDS and not (word == "token" and before in _KNOWN_TOKENS):
            return True
        if word.endswith(_SECRET_ENDS) or (before, word) in _SECRET_PAIRS:
            return True
    return False


def redact(content: Any) -> Any:
    """A copy of a configuration, or of any nest of mappings, lists and texts, without secrets.

    Numbers stay, also under a key such as `token_accuracy`, which measures something; a long one under `password` goes.
    """
    return _redacted(content, _Environment(), "")


def redact_config(content: Any) -> Any:
    """A configuration without secrets that can still be gone on with: those of the environment stand as their names.

    A value that holds that of HF_TOKEN holds ``${oc.env:HF_TOKEN}`` then, which OmegaConf looks up when it is read.
    """
    return _redacted(content, _Environment(by_name=True), "")


def redact_text(text: str) -> str:
    """A text without secrets: those of the environment, in URLs, of known shapes, after a telling name and = or :."""
    return _without(text, _Environment())


def hidden_keys(content: Any, prefix: str = "") -> list[str]:
    """The dotted keys of a configuration in whose place, or in part of it, a secret stood when it was written."""
    if isinstance(content, Mapping):
        return [key for name, item in content.items() for key in hidden_keys(item, f"{prefix}{name}.")]
    if isinstance(content, list | tuple):
        return [key for item in content for key in hidden_keys(item, prefix)][:1]
    return [prefix.rstrip(".")] if isinstance(content, str) and HIDDEN in content else []


def redact_file(path: Path) -> None:
    """Writes a YAML file of somebody else's again, without secrets; one without secrets stays as it is.

    Raises:
        OSError: it cannot be read or written.
    """
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    cleaned = redact(content)
    if cleaned == content:
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(yaml.safe_dump(cleaned, sort_keys=False, allow_unicode=True), encoding="utf-8")
    partial.replace(path)


class _Environment:
    """The secrets of the environment, looked for when the first text comes that could hold one.

    Args:
        by_name: say which variable holds a secret.
    """

    def __init__(self, *, by_name: bool = False) -> None:
        self.by_name = by_name

    @functools.cached_property
    def secrets(self) -> list[tuple[str, str]]:
        """Values of telling variables and passwords in URLs that others hold, the longest first, and what to write."""
        found = {}
        for value, name in _values_of_environment():
            if len(value) >= _SHORTEST:
                found[quote(value, safe="")] = HIDDEN
                found[value] = f"${{oc.env:{name}}}" if self.by_name and name else HIDDEN
        return sorted(found.items(), key=lambda pair: len(pair[0]), reverse=True)

    def without(self, text: str) -> str:
        """A text without them."""
        for value, shown in self.secrets:
            if value in text:
                text = text.replace(value, shown)
        return text


def _redacted(content: Any, environment: _Environment, key: str) -> Any:
    """A copy without secrets of what stands under a telling ``key``, or under none (empty)."""
    if isinstance(content, Mapping):
        return {
            name: _redacted(item, environment, str(name) if is_secret(str(name)) else key)
            for name, item in content.items()
        }
    if isinstance(content, list | tuple):
        return [_redacted(item, environment, key) for item in content]
    if isinstance(content, str):
        cleaned = _without(content, environment)
        return HIDDEN if key and content and not _REFERENCE.fullmatch(cleaned) else cleaned
    return HIDDEN if key and type(content) is int and _is_code(key, str(content)) else content


def _is_code(key: str, number: str) -> bool:
    """Whether a number is a secret: it is long, and the telling word comes last."""
    return number.isdecimal() and len(number) >= _LONG_NUMBER and is_secret(key.rpartition("_")[2] or key)


def _without(text: str, environment: _Environment) -> str:
    assigned = "=" in text or ":" in text
    if len(text) < _SHORTEST and not assigned:
        return text
    text = environment.without(text)
    text = _SHAPES.sub(HIDDEN, text)
    if "//" in text:
        text = _USER_IN_URL.sub(_hide_user, text)
    if assigned:
        text = _ASSIGNED.sub(_hide, _IN_QUERY.sub(_hide, text))
    if "bearer" in (lowered := text.lower()) or "authorization" in lowered:
        text = _AUTHORISED.sub(rf"\g<1>{HIDDEN}", text)
    return text


def _hide_user(found: re.Match[str]) -> str:
    named = _REFERENCE.fullmatch(found["user"].partition(":")[2] or found["user"])
    return found[0] if named else f"{found['scheme']}{HIDDEN}@"


def _hide(found: re.Match[str]) -> str:
    key, value = found["key"], found["value"]
    telling = is_secret(key) and not key.lower().startswith("credential")  # a word of messages
    if not telling or _REFERENCE.fullmatch(value) or (_NUMBER.fullmatch(value) and not _is_code(key, value)):
        return found[0]
    if found.re is _IN_QUERY:
        return f"{found['sign']}{key}{found['equals']}{HIDDEN}"
    mark = value[0] if value[0] in "'\"" else ""
    return f"{key}{found['sign']}{mark}{HIDDEN}{mark}"


def _values_of_environment() -> Iterator[tuple[str, str]]:
    """Secrets, each with the variable that holds nothing else; the name is empty where it holds more."""
    for key, value in os.environ.items():
        if is_secret(key):
            yield value.strip(), key if value == value.strip() else ""
        elif "@" in value and "://" in value:
            try:
                found = urlsplit(value)
                yield found.password or found.username or "", ""
            except ValueError:  # no URL after all
                continue
